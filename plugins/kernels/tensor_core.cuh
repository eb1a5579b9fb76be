// The instructions that both fast kernels are made of, for one warp: mma.sync m16n8k16, and cp.async.
//
// Weights are the A operand (16 weight rows), activations the B operand (8 tokens). Lane 4g + t of the warp holds
// A of rows g and g + 8, B of token g, and C of rows g and g + 8 at tokens 2t and 2t + 1 (PTX ISA, "Matrix fragments
// for mma.m16n8k16 with floating point type"). Which k a register stands for is free, as long as A and B agree.
#pragma once

#include <cstdint>
#include <type_traits>

#include "dequantize.h"

namespace awq2trt {

constexpr int kWarpSize = 32;
constexpr int kRowTile = 16;       // weight rows of one mma
constexpr int kTokenTile = 8;      // tokens of one mma
constexpr int kCodesPerWord = 8;   // INT4 codes in 32 bits; also the k that two mma take from one lane
constexpr int kCodesPerLoad = 32;  // INT4 codes in 16 bytes

// c += a * b for 16 rows, 8 tokens, 16 k.
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                            __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Eight activations x0..x7 in memory order -> the pairs that dequantize_word() makes: (0,4), (1,5), (2,6), (3,7).
__device__ __forceinline__ uint4 pair_activations(uint4 x) {
  constexpr uint32_t kLowHalves = 0x5410, kHighHalves = 0x7632;  // byte selectors of prmt
  return {__byte_perm(x.x, x.z, kLowHalves), __byte_perm(x.x, x.z, kHighHalves), __byte_perm(x.y, x.w, kLowHalves),
          __byte_perm(x.y, x.w, kHighHalves)};
}

// Pair of T times a scale in both halves.
template <typename T>
__device__ __forceinline__ uint32_t scale_pair(uint32_t pair, uint32_t scale) {
  using Pair = typename std::conditional<std::is_same<T, __half>::value, __half2, __nv_bfloat162>::type;
  return bits_of(__hmul2(pair_of<Pair>(pair), pair_of<Pair>(scale)));
}

__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// 16 bits of T as a number.
template <typename T>
__device__ __forceinline__ float float_of_bits(uint32_t bits);
template <>
__device__ __forceinline__ float float_of_bits<__half>(uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
template <>
__device__ __forceinline__ float float_of_bits<__nv_bfloat16>(uint32_t bits) {
  return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(bits)));
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
