// The CPU reference of CachedAttention: what FORMAT.md says, in the order it says it, in double precision. In and out
// as in cached_attention.h, every number widened.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cached_attention/cached_attention.h"

namespace awq2trt {

struct AttentionReference {
  std::vector<double> y;             // [B, S, Hq D]
  std::vector<double> keys, values;  // the cache after the call, [B, Hkv, C, D]; of codes what they stand for
  std::vector<double> key_scales, value_scales;  // of codes alone, [B, Hkv, C]: of the new slots, 0 elsewhere
};

// Empty vectors for what the problem leaves out. `round` is what storing a number in a tensor of T does to it.
AttentionReference attention_reference(const AttentionProblem& problem, const std::vector<double>& qkv,
                                       const std::vector<int64_t>& position, const std::vector<double>& cos,
                                       const std::vector<double>& sin, const std::vector<double>& query_norm,
                                       const std::vector<double>& key_norm, const std::vector<double>& alibi,
                                       std::vector<double> keys, std::vector<double> values, double (*round)(double),
                                       const std::vector<int64_t>& visible_end = {});

}  // namespace awq2trt
