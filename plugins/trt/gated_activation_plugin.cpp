// awq2trt::GatedActivation as a TensorRT plugin: its rules (ops/gated_activation.h) and kernel
// (kernels/gated_activation/) behind OperatorPlugin.
#include <cstddef>

#include "kernels/gated_activation/gated_activation.h"
#include "ops/gated_activation.h"
#include "trt/creators.h"
#include "trt/operator_plugin.h"

namespace awq2trt {
namespace {

namespace rules = gated_activation;
using nvinfer1::DimsExprs;
using nvinfer1::PluginFieldType;

struct GatedActivationOperator {
  struct Attributes {
    int32_t activation;
  };
  using Problem = ActivationProblem;
  struct Config {
    bool overlap;
  };

  static constexpr const char* kName = rules::kName;
  static constexpr const char* kVersion = rules::kVersion;
  static constexpr int32_t kMaxInputs = rules::kInputs;
  static constexpr AttributeField kFields[] = {
      {rules::kActivation, PluginFieldType::kINT32, offsetof(Attributes, activation)}};

  static int32_t output_count(const Attributes&) { return 1; }
  static int32_t aliased_input(const Attributes&, int32_t) { return -1; }

  static bool check_attributes(const Attributes& attributes, ErrorText* error) {
    return rules::check_activation(attributes.activation, error);
  }
  static bool check_inputs(const Attributes&, int32_t count, ErrorText* error) {
    return rules::check_input_count(count, error);
  }
  static bool check_type(const Attributes&, int32_t tensor, ElementType type, ElementType x_type, ErrorText* error) {
    return rules::check_type(tensor, type, x_type, error);
  }

  static bool infer_shapes(const Attributes&, const DimsExprs* inputs, DimsExprs* outputs,
                           nvinfer1::IExprBuilder& builder, ErrorText* error) {
    const DimsExprs& x = inputs[0];
    const int32_t last = x.nbDims - 1;
    const nvinfer1::IDimensionExpr* const width = last >= 0 ? x.d[last] : nullptr;
    const int64_t size = width != nullptr && width->isConstant() ? width->getConstantValue() : -1;
    int64_t sizes[nvinfer1::Dims::MAX_DIMS] = {};
    if (width != nullptr) sizes[last] = size;
    if (!rules::check_halves({sizes, x.nbDims}, error)) return false;
    outputs[0] = x;
    outputs[0].d[last] = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *width, *builder.constant(2));
    return true;
  }

  static bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, Problem* problem,
                               ErrorText* error) {
    return rules::describe_problem(attributes.activation, inputs[0], x_type, problem, error);
  }

  static size_t workspace_bytes(const Problem&) { return 0; }
  static Config choose(const Problem&, const Device& device) { return {can_overlap(device)}; }

  static cudaError_t launch(const Attributes&, const Problem& problem, const Config& config,
                            const PluginBuffers& buffers, cudaStream_t stream) {
    if (problem.rows == 0) return cudaSuccess;
    return launch_gated_activation(problem, buffers.inputs[0], buffers.outputs[0], config.overlap, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* gated_activation_creator() {
  static OperatorCreator<GatedActivationOperator> creator;
  return &creator;
}

}  // namespace awq2trt
