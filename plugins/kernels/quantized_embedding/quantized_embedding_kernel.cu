// One thread computes 8 numbers of y; see quantized_embedding.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/device/overlap.cuh"
#include "kernels/device/vector.cuh"
#include "kernels/quantized_embedding/quantized_embedding.h"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;

// The signed code at `index` of a packed tensor.
template <int kBits>
__device__ __forceinline__ int code_at(const uint8_t* packed, int64_t index) {
  if (kBits == 8) return static_cast<int8_t>(packed[index]);
  const int nibble = packed[index / 2] >> (index % 2 * 4) & 0xf;
  return (nibble ^ 8) - 8;
}

template <typename T, int kBits>
__global__ void __launch_bounds__(kThreads)
    quantized_embedding_kernel(EmbeddingProblem p, int groups, const T* __restrict__ scales,
                               const uint8_t* __restrict__ codes, const int64_t* ids, const uint8_t* __restrict__ zeros,
                               T* y) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int place = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kVectorLength;
  if (place >= p.width) return;
  const int64_t id = ids[blockIdx.x];
  float values[kVectorLength] = {};
  if (id >= 0 && id < p.vocabulary) {
    const int64_t first_group = id * groups;
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) {
      const int64_t group = first_group + (place + i) / p.group_size;
      const int zero = zeros != nullptr ? code_at<kBits>(zeros, group) : 0;
      const int code = code_at<kBits>(codes, id * p.width + place + i);
      values[i] = to_float(scales[group]) * static_cast<float>(code - zero);
    }
  }
  store_vector(y + static_cast<int64_t>(blockIdx.x) * p.width + place, values);
}

template <typename T>
cudaError_t launch_typed(const EmbeddingProblem& problem, const EmbeddingTensors& tensors, bool overlap,
                         cudaStream_t stream) {
  constexpr int kOfBlock = kThreads * kVectorLength;
  const dim3 grid(problem.rows, (problem.width + kOfBlock - 1) / kOfBlock);
  auto* const kernel = problem.code_bits == 8 ? quantized_embedding_kernel<T, 8> : quantized_embedding_kernel<T, 4>;
  return launch_kernel(kernel, grid, kThreads, 0, overlap, stream, problem, problem.groups(),
                       static_cast<const T*>(tensors.scales), static_cast<const uint8_t*>(tensors.codes), tensors.ids,
                       problem.has_zeros ? static_cast<const uint8_t*>(tensors.zeros) : nullptr,
                       static_cast<T*>(tensors.y));
}

}  // namespace

const char* check_validity(const EmbeddingProblem& problem) {
  constexpr int kMaxWidth = 1 << 20;
  if (problem.rows < 0) return "the number of ids is negative";
  if (problem.vocabulary < 1) return "the table must have a row";
  if (problem.width < 1 || problem.width % kVectorLength != 0) return "rows must be a positive multiple of 8 wide";
  if (problem.width > kMaxWidth) return "rows must be at most 1048576 wide";
  if (problem.group_size < 1) return "group_size must be at least 1";
  if (problem.code_bits != 4 && problem.code_bits != 8) return "codes must have 4 or 8 bits";
  return nullptr;
}

cudaError_t launch_quantized_embedding(const EmbeddingProblem& problem, const EmbeddingTensors& tensors, bool overlap,
                                       cudaStream_t stream) {
  if (check_validity(problem) != nullptr) return cudaErrorInvalidValue;
  if (problem.rows == 0) return cudaSuccess;
  const bool missing = tensors.scales == nullptr || tensors.codes == nullptr || tensors.ids == nullptr ||
                       tensors.y == nullptr || (problem.has_zeros && tensors.zeros == nullptr);
  if (missing) return cudaErrorInvalidValue;
  if (reinterpret_cast<uintptr_t>(tensors.y) % 16 != 0) return cudaErrorMisalignedAddress;
  return problem.dtype == DataType::kHalf ? launch_typed<__half>(problem, tensors, overlap, stream)
                                          : launch_typed<__nv_bfloat16>(problem, tensors, overlap, stream);
}

}  // namespace awq2trt
