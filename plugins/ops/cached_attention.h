// The rules of the operator CachedAttention, self-attention from merged queries, keys and values to its output, over a
// cache that it writes: its names, attributes, inputs, types and shapes, as in plugins/FORMAT.md.
//
// In:  a node's attributes, and the types and shapes of its tensors.
// Out: whether they fit each other, else why not as a sentence that begins with the operator's name; and the
//      AttentionProblem that the kernels solve.
#pragma once

#include <cstdint>

#include "kernels/cached_attention/cached_attention.h"
#include "ops/operator.h"

namespace awq2trt {
namespace cached_attention {

constexpr char kName[] = "CachedAttention";
constexpr char kVersion[] = "1";

constexpr char kNumHeads[] = "num_heads";
constexpr char kNumKvHeads[] = "num_kv_heads";
constexpr char kRotaryDim[] = "rotary_dim";
constexpr char kInterleaved[] = "interleaved";
constexpr char kWindow[] = "window";
constexpr char kHasNorms[] = "has_norms";
constexpr char kHasAlibi[] = "has_alibi";
constexpr char kScale[] = "scale";
constexpr char kSoftcap[] = "softcap";
constexpr char kClip[] = "clip";
constexpr char kNormEps[] = "norm_eps";
constexpr char kHasCacheScales[] = "has_cache_scales";  // a node may leave it out, which means 0; and the next
constexpr char kHasVisibleEnd[] = "has_visible_end";

// The node's attributes. A number of 0 leaves out the step that it belongs to.
struct Attributes {
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t rotary_dim;
  int32_t interleaved;
  int32_t window;
  int32_t has_norms;
  int32_t has_alibi;
  float scale;
  float softcap;
  float clip;
  float norm_eps;
  int32_t has_cache_scales;
  int32_t has_visible_end;
};

// Inputs in order, without gaps: inputs of steps that the attributes leave out are absent.
constexpr int32_t kQkv = 0, kPosition = 1, kPastKey = 2, kPastValue = 3, kFirstOptional = 4;
constexpr int32_t kMaxInputs = 12;
constexpr int32_t kNoInput = -1;

// Outputs.
constexpr int32_t kY = 0, kPresentKey = 1, kPresentValue = 2, kPresentKeyScale = 3, kPresentValueScale = 4;
constexpr int32_t kMaxOutputs = 5;

inline int32_t rotary_inputs(const Attributes& attributes) { return attributes.rotary_dim != 0 ? 2 : 0; }
inline int32_t norm_inputs(const Attributes& attributes) { return attributes.has_norms != 0 ? 2 : 0; }
inline int32_t input_count(const Attributes& attributes) {
  return kFirstOptional + rotary_inputs(attributes) + norm_inputs(attributes) + attributes.has_alibi +
         attributes.has_visible_end + 2 * attributes.has_cache_scales;
}
inline int32_t output_count(const Attributes& attributes) {
  return attributes.has_cache_scales != 0 ? kMaxOutputs : kPresentValue + 1;
}
// The first of two neighbours: cos comes before sin, the gain of queries before that of keys, and keys' scales before
// values'.
inline int32_t cos_input(const Attributes& attributes) {
  return attributes.rotary_dim != 0 ? kFirstOptional : kNoInput;
}
inline int32_t query_norm_input(const Attributes& attributes) {
  return attributes.has_norms != 0 ? kFirstOptional + rotary_inputs(attributes) : kNoInput;
}
inline int32_t alibi_input(const Attributes& attributes) {
  return attributes.has_alibi != 0 ? kFirstOptional + rotary_inputs(attributes) + norm_inputs(attributes) : kNoInput;
}
inline int32_t visible_end_input(const Attributes& attributes) {
  return attributes.has_visible_end != 0
             ? kFirstOptional + rotary_inputs(attributes) + norm_inputs(attributes) + attributes.has_alibi
             : kNoInput;
}
inline int32_t cache_scale_input(const Attributes& attributes) {
  return attributes.has_cache_scales != 0 ? input_count(attributes) - 2 : kNoInput;
}
// The input whose memory an output may be, and whose type and shape it has; kNoInput for y.
inline int32_t past_of(const Attributes& attributes, int32_t output) {
  if (output == kY) return kNoInput;
  return output <= kPresentValue ? kPastKey + output - kPresentKey
                                 : cache_scale_input(attributes) + output - kPresentKeyScale;
}

// Checks that counts of heads are positive and fit each other, that flags are 0 or 1, and that no number except the
// scale is negative.
bool check_attributes(const Attributes& attributes, ErrorText* error);

// Checks that `count` is the number of inputs that the attributes ask for.
bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error);

// Checks that positions and ends are int64, slopes fp32, keys and values with scales int8, and that everything else has
// the type of qkv. `tensor` counts inputs, and then outputs.
bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType qkv_type, ErrorText* error);

// qkv [B, S, (Hq + 2 Hkv) D] and past_key [B, Hkv, C, D] have as many dimensions. Sizes may still be unknown.
bool check_ranks(int32_t qkv_rank, int32_t past_rank, ErrorText* error);

// The kernels' problem for `inputs` [input_count(attributes)], all sizes known; or why no kernel takes them, or why
// they do not fit each other.
bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType qkv_type,
                      AttentionProblem* problem, ErrorText* error);

}  // namespace cached_attention
}  // namespace awq2trt
