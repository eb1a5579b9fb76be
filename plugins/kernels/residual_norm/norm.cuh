// The arithmetic of a norm, for every kernel that computes one: the same numbers in the same order give the same bits
// in every kernel. In and out: numbers in fp32 registers; see residual_norm.h.
#pragma once

#include "kernels/device/tensor_core.cuh"

namespace awq2trt {

// The most threads that compute a row's norm; a row of up to 4,096 numbers needs fewer. Vector v of 8 numbers belongs
// to thread v % kNormThreads. Each thread sums in the order of its vectors, then each warp sums its threads, then the
// warps' sums are added in order.
constexpr int kNormThreads = 512;
constexpr int kMaxNormWidth = 16384;

// Sums one value of each lane of a warp; every lane gets the sum.
__device__ __forceinline__ float sum_over_warp(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// Adds the square of one more number to a sum of squares.
__device__ __forceinline__ float add_square(float squares, float value, float mean) {
  return squares + (value - mean) * (value - mean);
}

// The factor by which a norm multiplies numbers, from the sum of the squares of a complete row.
__device__ __forceinline__ float norm_factor(float squares, int width, float epsilon) {
  return rsqrtf(squares / static_cast<float>(width) + epsilon);
}

__device__ __forceinline__ float normalized(float value, float mean, float factor, float gain, float bias) {
  return (value - mean) * factor * gain + bias;
}

}  // namespace awq2trt
