// awq2trt::ResidualNorm as a TensorRT plugin: its rules (ops/residual_norm.h) and kernel (kernels/residual_norm/)
// behind OperatorPlugin.
#include <cstddef>

#include "kernels/residual_norm/residual_norm.h"
#include "ops/residual_norm.h"
#include "trt/creators.h"
#include "trt/operator_plugin.h"

namespace awq2trt {
namespace {

namespace rules = residual_norm;
using nvinfer1::DimsExprs;
using nvinfer1::PluginFieldType;

struct ResidualNormOperator {
  using Attributes = rules::Attributes;
  using Problem = NormProblem;
  struct Config {
    bool overlap;
  };

  static constexpr const char* kName = rules::kName;
  static constexpr const char* kVersion = rules::kVersion;
  static constexpr int32_t kMaxInputs = rules::kMaxInputs;
  static constexpr AttributeField kFields[] = {
      {rules::kHasResidual, PluginFieldType::kINT32, offsetof(Attributes, has_residual)},
      {rules::kHasBias, PluginFieldType::kINT32, offsetof(Attributes, has_bias)},
      {rules::kRms, PluginFieldType::kINT32, offsetof(Attributes, rms)},
      {rules::kEpsilon, PluginFieldType::kFLOAT32, offsetof(Attributes, epsilon)}};

  static int32_t output_count(const Attributes& attributes) { return rules::output_count(attributes); }
  static int32_t aliased_input(const Attributes&, int32_t) { return rules::kNoInput; }

  static bool check_attributes(const Attributes& attributes, ErrorText* error) {
    return rules::check_attributes(attributes, error);
  }
  static bool check_inputs(const Attributes& attributes, int32_t count, ErrorText* error) {
    return rules::check_input_count(attributes, count, error);
  }
  static bool check_type(const Attributes&, int32_t tensor, ElementType type, ElementType x_type, ErrorText* error) {
    return rules::check_type(tensor, type, x_type, error);
  }

  static bool infer_shapes(const Attributes& attributes, const DimsExprs* inputs, DimsExprs* outputs,
                           nvinfer1::IExprBuilder&, ErrorText*) {
    for (int32_t i = 0; i < rules::output_count(attributes); ++i) outputs[i] = inputs[rules::kX];
    return true;
  }

  static bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, Problem* problem,
                               ErrorText* error) {
    return rules::describe_problem(attributes, inputs, x_type, problem, error);
  }

  static size_t workspace_bytes(const Problem&) { return 0; }
  static Config choose(const Problem&, const Device& device) { return {can_overlap(device)}; }

  static cudaError_t launch(const Attributes& attributes, const Problem& problem, const Config& config,
                            const PluginBuffers& buffers, cudaStream_t stream) {
    if (problem.rows == 0) return cudaSuccess;
    NormTensors tensors = {};
    tensors.x = buffers.inputs[rules::kX];
    tensors.gain = buffers.inputs[rules::gain_input(attributes)];
    tensors.y = buffers.outputs[rules::kY];
    if (problem.has_bias) tensors.bias = buffers.inputs[rules::bias_input(attributes)];
    if (problem.has_residual) {
      tensors.residual = buffers.inputs[rules::residual_input(attributes)];
      tensors.sum = buffers.outputs[rules::kSum];
    }
    return launch_residual_norm(problem, tensors, config.overlap, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* residual_norm_creator() {
  static OperatorCreator<ResidualNormOperator> creator;
  return &creator;
}

}  // namespace awq2trt
