// awq2trt::CachedAttention as a TensorRT plugin: its rules (ops/cached_attention.h) and kernels
// (kernels/cached_attention/) behind OperatorPlugin.
//
// Present keys and values use the memory of the past: the plugin declares it, and TensorRT accepts it only if
// PreviewFeature::kALIASED_PLUGIN_IO_10_03 is set at build. Its headers and trtexec have both from 10.3.0 on
// (NVIDIA/TensorRT, commit 84dd6ed1; the changelog's line under 10.4 is about a sample). If TensorRT nevertheless uses
// other memory, the addresses differ, and the kernels copy the past themselves.
#include <cstddef>

#include "kernels/cached_attention/cached_attention.h"
#include "ops/cached_attention.h"
#include "trt/creators.h"
#include "trt/operator_plugin.h"

namespace awq2trt {
namespace {

namespace rules = cached_attention;
using nvinfer1::DimsExprs;
using nvinfer1::PluginFieldType;

struct CachedAttentionOperator {
  using Attributes = rules::Attributes;
  using Problem = AttentionProblem;
  using Config = AttentionConfig;

  static constexpr const char* kName = rules::kName;
  static constexpr const char* kVersion = rules::kVersion;
  static constexpr int32_t kMaxInputs = rules::kMaxInputs;
  static constexpr AttributeField kFields[] = {
      {rules::kNumHeads, PluginFieldType::kINT32, offsetof(Attributes, num_heads)},
      {rules::kNumKvHeads, PluginFieldType::kINT32, offsetof(Attributes, num_kv_heads)},
      {rules::kRotaryDim, PluginFieldType::kINT32, offsetof(Attributes, rotary_dim)},
      {rules::kInterleaved, PluginFieldType::kINT32, offsetof(Attributes, interleaved)},
      {rules::kWindow, PluginFieldType::kINT32, offsetof(Attributes, window)},
      {rules::kHasNorms, PluginFieldType::kINT32, offsetof(Attributes, has_norms)},
      {rules::kHasAlibi, PluginFieldType::kINT32, offsetof(Attributes, has_alibi)},
      {rules::kScale, PluginFieldType::kFLOAT32, offsetof(Attributes, scale)},
      {rules::kSoftcap, PluginFieldType::kFLOAT32, offsetof(Attributes, softcap)},
      {rules::kClip, PluginFieldType::kFLOAT32, offsetof(Attributes, clip)},
      {rules::kNormEps, PluginFieldType::kFLOAT32, offsetof(Attributes, norm_eps)},
      {rules::kHasCacheScales, PluginFieldType::kINT32, offsetof(Attributes, has_cache_scales), true},
      {rules::kHasVisibleEnd, PluginFieldType::kINT32, offsetof(Attributes, has_visible_end), true}};

  static int32_t output_count(const Attributes& attributes) { return rules::output_count(attributes); }
  static int32_t aliased_input(const Attributes& attributes, int32_t output) {
    return rules::past_of(attributes, output);
  }

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
    const DimsExprs &qkv = inputs[rules::kQkv], &past = inputs[rules::kPastKey];
    if (!rules::check_ranks(qkv.nbDims, past.nbDims, error)) return false;
    const nvinfer1::IDimensionExpr& heads = *builder.constant(attributes.num_heads);
    outputs[rules::kY] = qkv;
    outputs[rules::kY].d[2] = builder.operation(nvinfer1::DimensionOperation::kPROD, heads, *past.d[3]);
    for (int32_t output = rules::kPresentKey; output < rules::output_count(attributes); ++output) {
      outputs[output] = inputs[rules::past_of(attributes, output)];
    }
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
    AttentionTensors tensors = {};
    tensors.qkv = buffers.inputs[rules::kQkv];
    tensors.position = static_cast<const int64_t*>(buffers.inputs[rules::kPosition]);
    tensors.past_key = buffers.inputs[rules::kPastKey];
    tensors.past_value = buffers.inputs[rules::kPastValue];
    if (problem.rotary_dim != 0) {
      tensors.cos = buffers.inputs[rules::cos_input(attributes)];
      tensors.sin = buffers.inputs[rules::cos_input(attributes) + 1];
    }
    if (problem.has_norms) {
      tensors.query_norm = buffers.inputs[rules::query_norm_input(attributes)];
      tensors.key_norm = buffers.inputs[rules::query_norm_input(attributes) + 1];
    }
    if (problem.has_alibi) tensors.alibi = static_cast<const float*>(buffers.inputs[rules::alibi_input(attributes)]);
    if (problem.has_visible_end) {
      tensors.visible_end = static_cast<const int64_t*>(buffers.inputs[rules::visible_end_input(attributes)]);
    }
    tensors.y = buffers.outputs[rules::kY];
    tensors.present_key = buffers.outputs[rules::kPresentKey];
    tensors.present_value = buffers.outputs[rules::kPresentValue];
    if (attributes.has_cache_scales != 0) {
      tensors.past_key_scale = buffers.inputs[rules::cache_scale_input(attributes)];
      tensors.past_value_scale = buffers.inputs[rules::cache_scale_input(attributes) + 1];
      tensors.present_key_scale = buffers.outputs[rules::kPresentKeyScale];
      tensors.present_value_scale = buffers.outputs[rules::kPresentValueScale];
    }
    tensors.workspace = buffers.workspace;
    return launch_cached_attention(problem, config, tensors, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* cached_attention_creator() {
  static OperatorCreator<CachedAttentionOperator> creator;
  return &creator;
}

}  // namespace awq2trt
