// The rules of CachedAttention; see cached_attention.h.
#include "ops/cached_attention.h"

namespace awq2trt {
namespace cached_attention {
namespace {

using Wide = long long;  // what %lld takes

bool check_at_least(int32_t least, const char* name, int32_t value, ErrorText* error) {
  return value >= least || fail(error, "%s: attribute %s must be at least %d, got %d", kName, name, least, value);
}

bool check_not_negative(const char* name, float value, ErrorText* error) {
  return value >= 0.0F || fail(error, "%s: attribute %s cannot be negative, got %g", kName, name, double{value});
}

// Checks that the inputs that the attributes ask for have the shapes that `problem` gives them.
bool check_optional_shapes(const Attributes& attributes, const Shape* inputs, const AttentionProblem& problem,
                           ErrorText* error) {
  if (attributes.rotary_dim != 0) {
    const int pairs = attributes.rotary_dim / 2;
    for (int32_t i = cos_input(attributes); i < cos_input(attributes) + 2; ++i) {
      const Shape& table = inputs[i];
      if (table.rank != 2 || table.sizes[0] < problem.capacity || table.sizes[1] != pairs) {
        return fail(error, "%s: cosines and sines must have shape [at least %d, %d]", kName, problem.capacity, pairs);
      }
    }
  }
  if (attributes.has_norms != 0) {
    for (int32_t i = query_norm_input(attributes); i < query_norm_input(attributes) + 2; ++i) {
      if (!has_sizes(inputs[i], {problem.head_dim})) {
        return fail(error, "%s: gains of norms must have shape [%d]", kName, problem.head_dim);
      }
    }
  }
  if (attributes.has_alibi != 0 && !has_sizes(inputs[alibi_input(attributes)], {problem.heads})) {
    return fail(error, "%s: slopes must have shape [%d]", kName, problem.heads);
  }
  if (attributes.has_visible_end != 0) {
    const Shape& ends = inputs[visible_end_input(attributes)];
    if (ends.rank != 1 || ends.sizes[0] < problem.capacity) {
      return fail(error, "%s: visible_end must have shape [at least %d]", kName, problem.capacity);
    }
  }
  if (attributes.has_cache_scales != 0) {
    for (int32_t i = cache_scale_input(attributes); i < cache_scale_input(attributes) + 2; ++i) {
      if (!has_sizes(inputs[i], {problem.batch, problem.kv_heads, problem.capacity})) {
        return fail(error, "%s: past_key_scale and past_value_scale must have shape [%d, %d, %d]", kName, problem.batch,
                    problem.kv_heads, problem.capacity);
      }
    }
  }
  return true;
}

}  // namespace

bool check_attributes(const Attributes& a, ErrorText* error) {
  if (!check_at_least(1, kNumHeads, a.num_heads, error) || !check_at_least(1, kNumKvHeads, a.num_kv_heads, error) ||
      !check_at_least(0, kRotaryDim, a.rotary_dim, error) || !check_at_least(0, kWindow, a.window, error)) {
    return false;
  }
  if (!check_flag(kName, kInterleaved, a.interleaved, error) || !check_flag(kName, kHasNorms, a.has_norms, error) ||
      !check_flag(kName, kHasAlibi, a.has_alibi, error) ||
      !check_flag(kName, kHasCacheScales, a.has_cache_scales, error) ||
      !check_flag(kName, kHasVisibleEnd, a.has_visible_end, error)) {
    return false;
  }
  if (a.num_heads % a.num_kv_heads != 0) {
    return fail(error, "%s: %s = %d must be a multiple of %s = %d", kName, kNumHeads, a.num_heads, kNumKvHeads,
                a.num_kv_heads);
  }
  return check_not_negative(kSoftcap, a.softcap, error) && check_not_negative(kClip, a.clip, error) &&
         check_not_negative(kNormEps, a.norm_eps, error);
}

bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error) {
  const int32_t expected = input_count(attributes);
  return count == expected ||
         fail(error,
              "%s: expected %d inputs for rotary_dim = %d, has_norms = %d, has_alibi = %d, has_visible_end = %d and "
              "has_cache_scales = %d, got %d",
              kName, expected, attributes.rotary_dim, attributes.has_norms, attributes.has_alibi,
              attributes.has_visible_end, attributes.has_cache_scales, count);
}

bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType qkv_type,
                ErrorText* error) {
  const int32_t output = tensor - input_count(attributes);
  const bool holds_numbers =
      tensor == kPastKey || tensor == kPastValue || output == kPresentKey || output == kPresentValue;
  const bool is_slots = tensor == kPosition || tensor == visible_end_input(attributes);
  const ElementType expected = is_slots                                            ? ElementType::kInt64
                               : tensor == alibi_input(attributes)                 ? ElementType::kFloat32
                               : holds_numbers && attributes.has_cache_scales != 0 ? ElementType::kInt8
                                                                                   : qkv_type;
  return check_tensor_type(kName, tensor, type, expected, error);
}

bool check_ranks(int32_t qkv_rank, int32_t past_rank, ErrorText* error) {
  return (qkv_rank == 3 && past_rank == 4) ||
         fail(error, "%s: expected QKV [B, S, (Hq + 2 Hkv) D] and past_key [B, Hkv, C, D], got %d and %d dimensions",
              kName, qkv_rank, past_rank);
}

bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType qkv_type,
                      AttentionProblem* problem, ErrorText* error) {
  const Shape &qkv = inputs[kQkv], &past = inputs[kPastKey];
  if (!check_ranks(qkv.rank, past.rank, error)) return false;
  const int64_t batch = qkv.sizes[0], tokens = qkv.sizes[1], capacity = past.sizes[2], head_dim = past.sizes[3];
  if (!fits_int(batch) || !fits_int(tokens) || !fits_int(capacity) || !fits_int(head_dim)) {
    return fail(error, "%s: B = %lld, S = %lld, C = %lld, D = %lld: negative, or beyond 2^31", kName, Wide{batch},
                Wide{tokens}, Wide{capacity}, Wide{head_dim});
  }
  const int64_t heads = int64_t{attributes.num_heads} + 2 * int64_t{attributes.num_kv_heads};
  if (qkv.last() != heads * head_dim) {
    return fail(error, "%s: the last dimension of QKV is %lld, but %lld heads of %lld channels are %lld", kName,
                Wide{qkv.last()}, Wide{heads}, Wide{head_dim}, Wide{heads * head_dim});
  }
  *problem = {static_cast<int>(batch),
              static_cast<int>(tokens),
              attributes.num_heads,
              attributes.num_kv_heads,
              static_cast<int>(head_dim),
              static_cast<int>(capacity),
              attributes.rotary_dim,
              attributes.window,
              attributes.scale,
              attributes.softcap,
              attributes.clip,
              attributes.norm_eps,
              attributes.has_norms != 0,
              attributes.interleaved != 0,
              attributes.has_alibi != 0,
              qkv_type == ElementType::kFloat16 ? DataType::kHalf : DataType::kBFloat16,
              attributes.has_cache_scales != 0 ? CacheType::kInt8 : CacheType::kAsActivations,
              attributes.has_visible_end != 0};
  if (const char* const reason = check_validity(*problem)) {
    return fail(error, "%s with B = %d, S = %d, C = %d, D = %d: %s", kName, problem->batch, problem->tokens,
                problem->capacity, problem->head_dim, reason);
  }
  for (const int32_t i : {kPastKey, kPastValue}) {
    if (!has_sizes(inputs[i], {batch, attributes.num_kv_heads, capacity, head_dim})) {
      return fail(error, "%s: past_key and past_value must have shape [%d, %d, %d, %d]", kName, problem->batch,
                  problem->kv_heads, problem->capacity, problem->head_dim);
    }
  }
  if (!has_sizes(inputs[kPosition], {batch})) {
    return fail(error, "%s: cache_position must have shape [%d]", kName, problem->batch);
  }
  return check_optional_shapes(attributes, inputs, *problem, error);
}

}  // namespace cached_attention
}  // namespace awq2trt
