// One block per row; see best_token.h. One multiprocessor reads 64 KB of scores in a microsecond or two, less than a
// second launch would take to combine the results of several blocks.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/best_token/best_token.h"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"
#include "kernels/device/vector.cuh"

namespace awq2trt {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;

// A score and its place in one number, so that the largest number is the largest score, and of equal scores the first.
// The high half orders floats as unsigned integers, with NaN below all of them; the low half is the place's complement.
__device__ __forceinline__ uint64_t candidate_of(float score, int place) {
  const uint32_t bits = __float_as_uint(score + 0.f);  // turns -0 into 0, which equals it
  const uint32_t order = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(isnan(score) ? 0u : order) << 32 | ~static_cast<uint32_t>(place);
}

__device__ __forceinline__ uint64_t best_of_warp(uint64_t candidate) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    candidate = max(candidate, static_cast<uint64_t>(__shfl_xor_sync(0xffffffffu, candidate, distance)));
  }
  return candidate;
}

// kVectors: rows start at multiples of 16 bytes and are read 8 scores at a time.
template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads) best_token_kernel(const T* scores, int64_t* y, int vocabulary) {
  __shared__ uint64_t warps[kWarps];
  let_next_kernel_start();
  wait_for_previous_kernel();
  const T* const row = scores + static_cast<int64_t>(blockIdx.x) * vocabulary;
  uint64_t best = 0;
  if (kVectors) {
#pragma unroll 4
    for (int place = threadIdx.x * kVectorLength; place < vocabulary; place += kThreads * kVectorLength) {
      float values[kVectorLength];
      load_vector(values, row + place);
#pragma unroll
      for (int i = 0; i < kVectorLength; ++i) best = max(best, candidate_of(values[i], place + i));
    }
  } else {
#pragma unroll 8
    for (int place = threadIdx.x; place < vocabulary; place += kThreads) {
      best = max(best, candidate_of(to_float(row[place]), place));
    }
  }
  best = best_of_warp(best);
  if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = best;
  __syncthreads();
  if (threadIdx.x >= kWarpSize) return;
  best = best_of_warp(warps[threadIdx.x]);
  if (threadIdx.x == 0) y[blockIdx.x] = static_cast<int64_t>(~static_cast<uint32_t>(best));
}

template <typename T>
cudaError_t launch_typed(const BestTokenProblem& problem, const void* scores, int64_t* y, bool overlap,
                         cudaStream_t stream) {
  static_assert(kWarps == kWarpSize, "one warp combines what the warps found");
  auto* const kernel =
      problem.vocabulary % kVectorLength == 0 ? best_token_kernel<T, true> : best_token_kernel<T, false>;
  return launch_kernel(kernel, dim3(problem.rows), kThreads, 0, overlap, stream, static_cast<const T*>(scores), y,
                       problem.vocabulary);
}

}  // namespace

const char* check_validity(const BestTokenProblem& problem) {
  if (problem.rows < 0) return "the number of rows cannot be negative";
  if (problem.vocabulary < 1) return "there must be at least 1 score";
  return nullptr;
}

cudaError_t launch_best_token(const BestTokenProblem& problem, const void* scores, int64_t* y, bool overlap,
                              cudaStream_t stream) {
  if (check_validity(problem) != nullptr || scores == nullptr || y == nullptr) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(scores) % 16 != 0) return cudaErrorMisalignedAddress;
  if (problem.rows == 0) return cudaSuccess;
  return problem.dtype == DataType::kHalf ? launch_typed<__half>(problem, scores, y, overlap, stream)
                                          : launch_typed<__nv_bfloat16>(problem, scores, y, overlap, stream);
}

}  // namespace awq2trt
