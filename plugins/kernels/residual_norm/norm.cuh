// The arithmetic of a norm, for every kernel that computes one: the same numbers in the same order give the same bits,
// whichever kernel they are computed in. In and out: numbers in fp32 registers; see residual_norm.h.
#pragma once

#include "kernels/device/tensor_core.cuh"

namespace awq2trt {

// The threads of a row's norm, of which a row of up to 4,096 numbers needs fewer. Vector v of 8 numbers is thread
// v % kNormThreads's. Sums are those of each thread in the order of its vectors, of each warp, and of all warps in
// turn.
constexpr int kNormThreads = 512;
constexpr int kMaxNormWidth = 16384;

// The sum of a value of each lane of a warp, for every lane.
__device__ __forceinline__ float sum_over_warp(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// A sum of squares with that of one more number.
__device__ __forceinline__ float add_square(float squares, float value, float mean) {
  return squares + (value - mean) * (value - mean);
}

// What a norm multiplies numbers by, of the sum of the squares of a whole row.
__device__ __forceinline__ float norm_factor(float squares, int width, float epsilon) {
  return rsqrtf(squares / static_cast<float>(width) + epsilon);
}

__device__ __forceinline__ float normalized(float value, float mean, float factor, float gain, float bias) {
  return (value - mean) * factor * gain + bias;
}

}  // namespace awq2trt
