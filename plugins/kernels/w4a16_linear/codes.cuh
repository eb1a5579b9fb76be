// How a warp walks along packed INT4 codes. In: a lane's words of codes, the activations to multiply with them, and the
// scale of a group. Out: the pairs that mma takes, and the group that a chunk of codes belongs to.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/device/half_pair.h"
#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {

constexpr int kCodesPerWord = kFeaturesMultiple;  // INT4 codes in 32 bits; also the k that two mma take from one lane
constexpr int kCodesPerLoad = 32;                 // INT4 codes in 16 bytes

// Eight activations x0..x7 in memory order -> the pairs that dequantize_word() makes: (0,4), (1,5), (2,6), (3,7).
__device__ __forceinline__ uint4 pair_activations(uint4 x) {
  constexpr uint32_t kLowHalves = 0x5410, kHighHalves = 0x7632;  // byte selectors of prmt
  return {__byte_perm(x.x, x.z, kLowHalves), __byte_perm(x.x, x.z, kHighHalves), __byte_perm(x.y, x.w, kLowHalves),
          __byte_perm(x.y, x.w, kHighHalves)};
}

// A pair of T times a scale that is in both halves.
template <typename T>
__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, uint32_t scale) {
  using Pair = typename std::conditional<std::is_same<T, __half>::value, __half2, __nv_bfloat162>::type;
  return bits_of(__hmul2(pair_of<Pair>(pair), pair_of<Pair>(scale)));
}

// Chunks of kCodesPerLoad codes per group, or per row if a row is one group.
inline int chunks_per_group(int k, int group_size) {
  return group_size >= k ? (k + kCodesPerLoad - 1) / kCodesPerLoad : group_size / kCodesPerLoad;
}

// floor(chunk / chunks_per_group) for chunk < 2^16 by one multiplication: Granlund and Montgomery, "Division by
// invariant integers using multiplication" (PLDI 1994). reciprocal = ceil(2^31 / d) errs by less than d / 2^31, which
// for chunk, d <= 2^16 cannot carry a quotient over the next integer.
struct GroupOfChunk {
  uint32_t reciprocal;

  explicit GroupOfChunk(uint32_t chunks_per_group)
      : reciprocal(static_cast<uint32_t>(((uint64_t{1} << 31) + chunks_per_group - 1) / chunks_per_group)) {}
  __device__ __forceinline__ int operator()(int chunk) const {
    return static_cast<int>(__umulhi(2u * static_cast<uint32_t>(chunk), reciprocal));
  }
};

}  // namespace awq2trt
