// One thread computes 8 numbers of y; see gated_activation.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/device/overlap.cuh"
#include "kernels/device/vector.cuh"
#include "kernels/gated_activation/activated.cuh"
#include "kernels/gated_activation/gated_activation.h"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;

template <typename T, Activation kActivation>
__global__ void __launch_bounds__(kThreads) gated_activation_kernel(const T* x, T* y, int width) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int place = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) * kVectorLength;
  if (place >= width) return;
  const int64_t row = blockIdx.y;
  float gate[kVectorLength], up[kVectorLength];
  load_vector(gate, x + 2 * row * width + place);
  load_vector(up, x + (2 * row + 1) * width + place);
#pragma unroll
  for (int i = 0; i < kVectorLength; ++i) gate[i] = activated<kActivation>(gate[i]) * up[i];
  store_vector(y + row * width + place, gate);
}

template <typename T>
cudaError_t launch_typed(const ActivationProblem& problem, const void* x, void* y, bool overlap, cudaStream_t stream) {
  void (*kernel)(const T*, T*, int) = nullptr;
  switch (problem.activation) {
    case Activation::kSilu:
      kernel = gated_activation_kernel<T, Activation::kSilu>;
      break;
    case Activation::kGelu:
      kernel = gated_activation_kernel<T, Activation::kGelu>;
      break;
    case Activation::kGeluTanh:
      kernel = gated_activation_kernel<T, Activation::kGeluTanh>;
      break;
    case Activation::kRelu:
      kernel = gated_activation_kernel<T, Activation::kRelu>;
      break;
  }
  constexpr int kOfBlock = kThreads * kVectorLength;
  const dim3 grid((problem.width + kOfBlock - 1) / kOfBlock, problem.rows);
  return launch_kernel(kernel, grid, kThreads, 0, overlap, stream, static_cast<const T*>(x), static_cast<T*>(y),
                       problem.width);
}

}  // namespace

const char* check_validity(const ActivationProblem& problem) {
  if (problem.rows < 0 || problem.rows > 65535) return "the number of rows must be 0 to 65535";
  if (problem.width < kVectorLength || problem.width % kVectorLength != 0) return "the width must be a multiple of 8";
  const auto activation = static_cast<int32_t>(problem.activation);
  if (activation < 0 || activation > static_cast<int32_t>(Activation::kRelu)) return "no such activation";
  return nullptr;
}

cudaError_t launch_gated_activation(const ActivationProblem& problem, const void* x, void* y, bool overlap,
                                    cudaStream_t stream) {
  if (check_validity(problem) != nullptr || x == nullptr || y == nullptr) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(x) % 16 != 0 || reinterpret_cast<uintptr_t>(y) % 16 != 0) {
    return cudaErrorMisalignedAddress;
  }
  if (problem.rows == 0) return cudaSuccess;
  return problem.dtype == DataType::kHalf ? launch_typed<__half>(problem, x, y, overlap, stream)
                                          : launch_typed<__nv_bfloat16>(problem, x, y, overlap, stream);
}

}  // namespace awq2trt
