// One thread computes 8 numbers of y; see epilogue.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/device/overlap.cuh"
#include "kernels/fused_linear/epilogue.h"
#include "kernels/w4a16_linear/fusion.cuh"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads) epilogue_kernel(FusionParams<T> fusion, T* y, int64_t vectors) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t vector = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (vector >= vectors) return;
  float values[kVectorLength], addend[kVectorLength] = {};
  load_vector(values, y + vector * kVectorLength);
  if (fusion.addend != nullptr) load_vector(addend, fusion.addend + vector * kVectorLength);
#pragma unroll
  for (int i = 0; i < kVectorLength; ++i) values[i] = finished(fusion, values[i], addend[i]);
  store_vector(y + vector * kVectorLength, values);
}

template <typename T>
cudaError_t launch_typed(const FusedLinearProblem& problem, const void* addend, void* y, bool overlap,
                         cudaStream_t stream) {
  FusionParams<T> fusion = {};
  fusion.has_activation = problem.has_activation;
  fusion.activation = problem.activation.activation;
  fusion.addend = problem.has_addend ? static_cast<const T*>(addend) : nullptr;
  const int64_t vectors = int64_t{problem.linear.m} * problem.linear.n / kVectorLength;
  const dim3 grid(static_cast<unsigned>((vectors + kThreads - 1) / kThreads));
  return launch_kernel(epilogue_kernel<T>, grid, kThreads, 0, overlap, stream, fusion, static_cast<T*>(y), vectors);
}

}  // namespace

cudaError_t launch_epilogue(const FusedLinearProblem& problem, const void* addend, void* y, bool overlap,
                            cudaStream_t stream) {
  return problem.linear.dtype == DataType::kHalf ? launch_typed<__half>(problem, addend, y, overlap, stream)
                                                 : launch_typed<__nv_bfloat16>(problem, addend, y, overlap, stream);
}

}  // namespace awq2trt
