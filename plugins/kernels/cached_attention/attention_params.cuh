// What the attention kernels share: their parameters in the type of the call, the score of a query and a key, and the
// slots that a query and a block of queries see.
#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/cached_attention/cached_attention.h"
#include "kernels/device/convert.cuh"
#include "kernels/device/global_loads.cuh"

namespace awq2trt {

// T is the type of the call; C, the type of the cache, is T or int8_t.
template <typename T, typename C = T>
struct AttentionParams {
  const T* qkv;
  const int64_t* position;
  const T* cos;
  const T* sin;
  const T* query_norm;
  const T* key_norm;
  const float* alibi;
  const int64_t* visible_end;  // [at least capacity]
  C* keys;                     // present, [B, Hkv, capacity, D]
  C* values;
  T* y;
  T* queries;       // workspace: normed and rotated, [B, S, Hq, D]; not in kDecode
  float* partials;  // workspace: sums of splits, [B, Hq, S, splits, D]
  float2* maxima;   // workspace: largest score and sum of weights, [B, Hq, S, splits]
  int tokens, heads, kv_heads, heads_per_kv, capacity, rotary_dim, window, splits;
  float scale, softcap, clip, norm_eps;
  bool interleaved;
  T* key_scales;  // present, [B, Hkv, capacity]; of codes alone
  T* value_scales;
};

constexpr float kLog2E = 1.4426950408889634f;

// A masked score: so far below every other that its weight is 0, yet finite, so that the difference of two masked
// scores is a number.
constexpr float kMasked = -FLT_MAX / 4;

// What a query sees without ends: the slots up to its own, or a window of them.
struct OwnSlot {
  int last;
};

// What any query sees; the last slot is its own if there are no ends.
struct SeenSlots {
  int first, last;
};

template <typename Params>
__device__ __forceinline__ bool sees(const Params& p, OwnSlot own, int slot) {
  return slot <= own.last && (p.window == 0 || slot > own.last - p.window);
}
template <typename Params>
__device__ __forceinline__ bool sees(const Params&, SeenSlots seen, int slot) {
  return slot >= seen.first && slot <= seen.last;
}

// The first slot that the token in slot `slot` sees.
template <typename Params>
__device__ __forceinline__ int first_seen(const Params& p, int slot) {
  return p.window == 0 ? 0 : max(0, slot + 1 - p.window);
}

// The last slot that the token in slot `slot` sees: its own, or its end if there are ends. An end is clamped to the
// token's own slot and to that of the sequence's last new token, `newest`: it never leads to slots that were not
// written.
template <bool kMayHaveEnds, typename Params>
__device__ __forceinline__ int last_seen(const Params& p, int slot, int newest) {
  if (!kMayHaveEnds || p.visible_end == nullptr) return slot;
  const int64_t end = load_fresh(p.visible_end + min(slot, p.capacity - 1));
  return end <= slot ? slot : end >= newest ? newest : static_cast<int>(end);
}

// Score of a query that sees `seen` and the key in slot `slot` from their product, times log2(e): weights are powers of
// 2. kMasked if the query does not see the slot. kPlain: there is neither a soft cap nor ALiBi, which both exclude
// ends, so that otherwise the last slot that a query sees is its own.
template <bool kPlain, typename Params, typename Seen>
__device__ __forceinline__ float score_of(const Params& p, float product, int slot, Seen seen, float slope) {
  float score = product * p.scale;
  if (!kPlain) {
    if (p.softcap > 0.f) score = p.softcap * tanhf(score / p.softcap);
    score += slope * static_cast<float>(slot - seen.last);
  }
  return sees(p, seen, slot) ? score * kLog2E : kMasked;
}

// Slots [begin, end) that at least one query of several in a row sees.
struct SlotRange {
  int begin, end;
};

// A sequence's position, clamped to the cache: a position outside it gives meaningless numbers but must not reach
// memory that is not ours. At the capacity nothing is written.
template <typename Params>
__device__ __forceinline__ int position_within(const Params& p, int64_t position) {
  return position < 0 ? 0 : position > p.capacity ? p.capacity : static_cast<int>(position);
}

// First slot of a sequence's head in the cache.
template <typename Params>
__device__ __forceinline__ int64_t cache_row(const Params& p, int sequence, int kv_head, int slot) {
  return (static_cast<int64_t>(sequence) * p.kv_heads + kv_head) * p.capacity + slot;
}

}  // namespace awq2trt
