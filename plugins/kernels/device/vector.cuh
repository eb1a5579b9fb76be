// 8 numbers of fp16 or bf16 at once: 16 bytes of memory to and from fp32 registers.
#pragma once

#include <cstdint>

#include "kernels/device/convert.cuh"

namespace awq2trt {

constexpr int kVectorLength = 8;

template <typename T>
__device__ __forceinline__ void widen_vector(float (&values)[kVectorLength], uint4 words) {
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < kVectorLength; ++i) values[i] = float_of_bits<T>(word[i / 2] >> (i % 2 * 16) & 0xffffu);
}

template <typename T>
__device__ __forceinline__ uint4 rounded_vector(const float (&values)[kVectorLength]) {
  alignas(sizeof(uint4)) T packed[kVectorLength];
#pragma unroll
  for (int i = 0; i < kVectorLength; ++i) packed[i] = from_float<T>(values[i]);
  return *reinterpret_cast<const uint4*>(packed);
}

template <typename T>
__device__ __forceinline__ void load_vector(float (&values)[kVectorLength], const T* source) {
  widen_vector<T>(values, *reinterpret_cast<const uint4*>(source));
}

template <typename T>
__device__ __forceinline__ void store_vector(T* target, const float (&values)[kVectorLength]) {
  *reinterpret_cast<uint4*>(target) = rounded_vector<T>(values);
}

}  // namespace awq2trt
