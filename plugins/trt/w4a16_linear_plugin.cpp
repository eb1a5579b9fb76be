// awq2trt::W4A16Linear and W8A16Linear as TensorRT plugins: their rules (ops/w4a16_linear.h) and kernels
// (kernels/w4a16_linear/, kernels/w8a16_linear/) behind OperatorPlugin.
#include <cstddef>

#include "kernels/w4a16_linear/w4a16_linear.h"
#include "kernels/w8a16_linear/w8a16_linear.h"
#include "ops/w4a16_linear.h"
#include "trt/creators.h"
#include "trt/operator_plugin.h"

namespace awq2trt {
namespace {

namespace rules = w4a16_linear;
using nvinfer1::DimsExprs;
using nvinfer1::PluginFieldType;

template <int kBits>
struct LinearOperator {
  struct Attributes : rules::Attributes {
    Attributes() : rules::Attributes{0, 0, 0, kBits} {}
  };
  using Problem = GemmProblem;
  using Config = KernelConfig;

  static constexpr const char* kName = kBits == 8 ? rules::kName8 : rules::kName;
  static constexpr const char* kVersion = rules::kVersion;
  static constexpr int32_t kMaxInputs = rules::kMaxInputs;
  static constexpr AttributeField kFields[] = {
      {rules::kGroupSize, PluginFieldType::kINT32, offsetof(rules::Attributes, group_size)},
      {rules::kHasZeros, PluginFieldType::kINT32, offsetof(rules::Attributes, has_zeros)},
      {rules::kHasBias, PluginFieldType::kINT32, offsetof(rules::Attributes, has_bias)}};

  static int32_t output_count(const Attributes&) { return 1; }
  static int32_t aliased_input(const Attributes&, int32_t) { return rules::kNoInput; }

  static bool check_attributes(const Attributes& attributes, ErrorText* error) {
    return rules::check_attributes(attributes, error);
  }
  static bool check_inputs(const Attributes& attributes, int32_t count, ErrorText* error) {
    return rules::check_input_count(attributes, count, error);
  }
  static bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType x_type,
                         ErrorText* error) {
    return rules::check_type(attributes, tensor, type, x_type, error);
  }

  static bool infer_shapes(const Attributes& attributes, const DimsExprs* inputs, DimsExprs* outputs,
                           nvinfer1::IExprBuilder&, ErrorText* error) {
    const DimsExprs &x = inputs[rules::kX], &codes = inputs[rules::kCodes];
    if (!rules::check_ranks(attributes, x.nbDims, codes.nbDims, error)) return false;
    outputs[0] = x;
    outputs[0].d[x.nbDims - 1] = codes.d[0];
    return true;
  }

  static bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, Problem* problem,
                               ErrorText* error) {
    return rules::describe_problem(attributes, inputs, x_type, problem, error);
  }

  static size_t workspace_bytes(const Problem& problem) { return kBits == 8 ? 0 : workspace_bound(problem); }
  static Config choose(const Problem& problem, const Device& device) {
    if (kBits != 8) return choose_config(problem, device);
    Config config = {};
    config.overlap = can_overlap(device);
    return config;
  }

  static cudaError_t launch(const Attributes& attributes, const Problem& problem, const Config& config,
                            const PluginBuffers& buffers, cudaStream_t stream) {
    const int32_t zeros = rules::zeros_input(attributes), bias = rules::bias_input(attributes);
    LinearTensors tensors = {};
    tensors.x = buffers.inputs[rules::kX];
    tensors.codes = buffers.inputs[rules::kCodes];
    tensors.scales = buffers.inputs[rules::kScales];
    if (zeros != rules::kNoInput) tensors.zeros = buffers.inputs[zeros];
    if (bias != rules::kNoInput) tensors.bias = buffers.inputs[bias];
    tensors.y = buffers.outputs[0];
    tensors.workspace = buffers.workspace;
    if (kBits == 8) return launch_w8a16_linear(problem, tensors, config.overlap, stream);
    return launch_w4a16_linear(problem, config, tensors, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* w4a16_linear_creator() {
  static OperatorCreator<LinearOperator<4>> creator;
  return &creator;
}

nvinfer1::IPluginCreatorInterface* w8a16_linear_creator() {
  static OperatorCreator<LinearOperator<8>> creator;
  return &creator;
}

}  // namespace awq2trt
