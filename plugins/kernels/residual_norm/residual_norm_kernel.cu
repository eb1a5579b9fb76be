// One block per row; the row stays in registers between the sum, its statistics and the output; see residual_norm.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/device/overlap.cuh"
#include "kernels/device/vector.cuh"
#include "kernels/residual_norm/norm.cuh"
#include "kernels/residual_norm/residual_norm.h"

namespace awq2trt {
namespace {

template <typename T>
struct NormParams {
  const T* x;
  const T* residual;
  const T* gain;
  const T* bias;
  T* sum;
  T* y;
  int width;
  float eps;
  bool rms;
};

// Sums one value of each thread of the block, always in the same order; every thread gets the sum.
__device__ __forceinline__ float sum_over_block(float value) {
  __shared__ float warps[kNormThreads / kWarpSize];
  value = sum_over_warp(value);
  __syncthreads();  // the sum before this one has been read
  if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  float total = 0.f;
  for (unsigned warp = 0; warp < blockDim.x / kWarpSize; ++warp) total += warps[warp];
  return total;
}

// kVectors: how many vectors of 8 numbers a thread holds.
template <typename T, int kVectors>
__global__ void __launch_bounds__(kNormThreads) residual_norm_kernel(NormParams<T> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * p.width;
  const auto place_of = [&](int v) { return static_cast<int>(threadIdx.x + v * blockDim.x) * kVectorLength; };
  float value[kVectors][kVectorLength] = {};
  uint4 gain_words[kVectors] = {}, bias_words[kVectors] = {};

  let_next_kernel_start();
  // These come from memory, not from a cache, since they were last read a token ago; so they are read while the
  // previous kernel ends, not after it.
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int place = place_of(v);
    if (place >= p.width) continue;
    gain_words[v] = *reinterpret_cast<const uint4*>(p.gain + place);
    if (p.bias != nullptr) bias_words[v] = *reinterpret_cast<const uint4*>(p.bias + place);
  }
  wait_for_previous_kernel();
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int place = place_of(v);
    if (place >= p.width) continue;
    load_vector(value[v], p.x + row + place);
    if (p.residual == nullptr) continue;
    float added[kVectorLength];
    load_vector(added, p.residual + row + place);
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) value[v][i] = to_float(from_float<T>(value[v][i] + added[i]));
    store_vector(p.sum + row + place, value[v]);
  }

  float mean = 0.f;
  if (!p.rms) {
    float total = 0.f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int i = 0; i < kVectorLength; ++i) total += value[v][i];  // 0 beyond the row
    }
    mean = sum_over_block(total) / static_cast<float>(p.width);
  }
  float squares = 0.f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (place_of(v) >= p.width) continue;
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) squares = add_square(squares, value[v][i], mean);
  }
  const float factor = norm_factor(sum_over_block(squares), p.width, p.eps);

#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int place = place_of(v);
    if (place >= p.width) continue;
    float gain[kVectorLength], bias[kVectorLength], y[kVectorLength];
    widen_vector<T>(gain, gain_words[v]);
    widen_vector<T>(bias, bias_words[v]);  // zeros without a bias
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) y[i] = normalized(value[v][i], mean, factor, gain[i], bias[i]);
    store_vector(p.y + row + place, y);
  }
}

template <typename T>
cudaError_t launch_typed(const NormProblem& problem, const NormTensors& tensors, bool overlap, cudaStream_t stream) {
  NormParams<T> params = {};
  params.x = static_cast<const T*>(tensors.x);
  params.residual = problem.has_residual ? static_cast<const T*>(tensors.residual) : nullptr;
  params.gain = static_cast<const T*>(tensors.gain);
  params.bias = problem.has_bias ? static_cast<const T*>(tensors.bias) : nullptr;
  params.sum = static_cast<T*>(tensors.sum);
  params.y = static_cast<T*>(tensors.y);
  params.width = problem.width;
  params.eps = problem.eps;
  params.rms = problem.rms;
  const int vectors = problem.width / kVectorLength;
  const int threads = min((vectors + kWarpSize - 1) / kWarpSize * kWarpSize, kNormThreads);
  const int each = (vectors + threads - 1) / threads;
  auto* const kernel = each == 1   ? residual_norm_kernel<T, 1>
                       : each == 2 ? residual_norm_kernel<T, 2>
                                   : residual_norm_kernel<T, 4>;
  return launch_kernel(kernel, dim3(problem.rows), threads, 0, overlap, stream, params);
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace

const char* check_validity(const NormProblem& problem) {
  if (problem.rows < 0) return "the number of rows cannot be negative";
  if (problem.width < kVectorLength || problem.width % kVectorLength != 0) return "the width must be a multiple of 8";
  if (problem.width > kMaxNormWidth) return "the width must be at most 16384";
  if (!(problem.eps >= 0.f)) return "epsilon cannot be negative";
  if (problem.rms && problem.has_bias) return "an RMS norm has no bias";
  return nullptr;
}

cudaError_t launch_residual_norm(const NormProblem& problem, const NormTensors& tensors, bool overlap,
                                 cudaStream_t stream) {
  if (check_validity(problem) != nullptr || tensors.x == nullptr || tensors.gain == nullptr || tensors.y == nullptr ||
      (problem.has_residual && (tensors.residual == nullptr || tensors.sum == nullptr)) ||
      (problem.has_bias && tensors.bias == nullptr)) {
    return cudaErrorInvalidValue;
  }
  const void* const pointers[] = {tensors.x, tensors.residual, tensors.gain, tensors.bias, tensors.sum, tensors.y};
  for (const void* pointer : pointers) {
    if (!is_aligned(pointer)) return cudaErrorMisalignedAddress;
  }
  if (problem.rows == 0) return cudaSuccess;
  return problem.dtype == DataType::kHalf ? launch_typed<__half>(problem, tensors, overlap, stream)
                                          : launch_typed<__nv_bfloat16>(problem, tensors, overlap, stream);
}

}  // namespace awq2trt
