// What kernels of many queries make weights of scores with: powers of 2 in fp32, and pairs of them as operands of T.
#pragma once

#include <cstdint>

#include "kernels/device/half_pair.h"

namespace awq2trt {

// Two numbers as a pair of the last argument's type.
__device__ __forceinline__ uint32_t pair_as(float low, float high, __half) {
  return bits_of(__floats2half2_rn(low, high));
}
__device__ __forceinline__ uint32_t pair_as(float low, float high, __nv_bfloat16) {
  return bits_of(__floats2bfloat162_rn(low, high));
}

// 2^x in one instruction; results below 2^-126 become 0.
__device__ __forceinline__ float power_of_2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

}  // namespace awq2trt
