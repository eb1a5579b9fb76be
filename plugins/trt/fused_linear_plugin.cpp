// awq2trt::FusedLinear as a TensorRT plugin: its rules (ops/fused_linear.h) and kernels (kernels/fused_linear/) behind
// OperatorPlugin.
#include <cstddef>

#include "kernels/fused_linear/fused_linear.h"
#include "ops/fused_linear.h"
#include "trt/creators.h"
#include "trt/operator_plugin.h"

namespace awq2trt {
namespace {

namespace rules = fused_linear;
using nvinfer1::DimsExprs;
using nvinfer1::PluginFieldType;

struct FusedLinearOperator {
  using Attributes = rules::Attributes;
  using Problem = FusedLinearProblem;
  using Config = FusedLinearConfig;

  static constexpr const char* kName = rules::kName;
  static constexpr const char* kVersion = rules::kVersion;
  static constexpr int32_t kMaxInputs = rules::kMaxInputs;
  static constexpr AttributeField kFields[] = {
      {rules::kGroupSize, PluginFieldType::kINT32, offsetof(Attributes, group_size)},
      {rules::kHasZeros, PluginFieldType::kINT32, offsetof(Attributes, has_zeros)},
      {rules::kHasBias, PluginFieldType::kINT32, offsetof(Attributes, has_bias)},
      {rules::kHasNorm, PluginFieldType::kINT32, offsetof(Attributes, has_norm)},
      {rules::kHasResidual, PluginFieldType::kINT32, offsetof(Attributes, has_residual)},
      {rules::kHasNormBias, PluginFieldType::kINT32, offsetof(Attributes, has_norm_bias)},
      {rules::kRms, PluginFieldType::kINT32, offsetof(Attributes, rms)},
      {rules::kHasActivation, PluginFieldType::kINT32, offsetof(Attributes, has_activation)},
      {rules::kActivation, PluginFieldType::kINT32, offsetof(Attributes, activation)},
      {rules::kGated, PluginFieldType::kINT32, offsetof(Attributes, gated)},
      {rules::kHasAddend, PluginFieldType::kINT32, offsetof(Attributes, has_addend)},
      {rules::kEpsilon, PluginFieldType::kFLOAT32, offsetof(Attributes, epsilon)}};

  static int32_t output_count(const Attributes& attributes) { return rules::output_count(attributes); }
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
                           nvinfer1::IExprBuilder& builder, ErrorText* error) {
    const DimsExprs &x = inputs[rules::kX], &codes = inputs[rules::codes_input(attributes)];
    int64_t sizes[nvinfer1::Dims::MAX_DIMS] = {};
    for (int32_t i = 0; i < codes.nbDims; ++i)
      sizes[i] = codes.d[i]->isConstant() ? codes.d[i]->getConstantValue() : -1;
    if (!rules::check_shapes(attributes, x.nbDims, {sizes, codes.nbDims}, error)) return false;
    const nvinfer1::IDimensionExpr* const n = codes.d[0];
    outputs[rules::kY] = x;
    outputs[rules::kY].d[x.nbDims - 1] =
        attributes.gated != 0 ? builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *n, *builder.constant(2))
                              : n;
    if (attributes.has_residual != 0) outputs[rules::kSum] = x;
    return true;
  }

  static bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, Problem* problem,
                               ErrorText* error) {
    return rules::describe_problem(attributes, inputs, x_type, problem, error);
  }

  static size_t workspace_bytes(const Problem& problem) { return workspace_bound(problem); }
  static Config choose(const Problem& problem, const Device& device) { return choose_config(problem, device); }

  static cudaError_t launch(const Attributes& attributes, const Problem& problem, const Config& config,
                            const PluginBuffers& buffers, cudaStream_t stream) {
    const auto input = [&](int32_t index) { return index == rules::kNoInput ? nullptr : buffers.inputs[index]; };
    FusedLinearTensors tensors = {};
    tensors.x = input(rules::kX);
    tensors.residual = input(rules::residual_input(attributes));
    tensors.gain = input(rules::gain_input(attributes));
    tensors.norm_bias = input(rules::norm_bias_input(attributes));
    tensors.codes = input(rules::codes_input(attributes));
    tensors.scales = input(rules::scales_input(attributes));
    tensors.zeros = input(rules::zeros_input(attributes));
    tensors.bias = input(rules::bias_input(attributes));
    tensors.addend = input(rules::addend_input(attributes));
    tensors.y = buffers.outputs[rules::kY];
    if (attributes.has_residual != 0) tensors.sum = buffers.outputs[rules::kSum];
    tensors.workspace = buffers.workspace;
    return launch_fused_linear(problem, config, tensors, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* fused_linear_creator() {
  static OperatorCreator<FusedLinearOperator> creator;
  return &creator;
}

}  // namespace awq2trt
