// y = x * W^T for many tokens on a GPU whose dense products are much faster than ours: a slice of W's rows is written
// as T to the workspace, cuBLASLt multiplies by it, then comes the next slice.
//
// - Slices bound the workspace; most weights are a single slice. Passing W in T through memory costs less than short
//   products lose: slices that stay in the L2 cache were tried (README.md).
// - A weight is scaled in T, as in the tile kernel: half an ulp of error. Sums are fp32.
// - A thread takes a word of 8 codes of kRowsAtOnce rows: loads and 16-byte stores of a warp are contiguous.
#include "kernels/device/cublas_lt.h"
#include "kernels/device/overlap.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/dequantize.h"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsAtOnce = 4;
constexpr int kWordsPerChunk = kCodesPerLoad / kCodesPerWord;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(LinearParams<T> p, GroupOfChunk group_of_chunk, int first_row, int rows, T* weights) {
  const int words = p.k / kCodesPerWord, word = blockIdx.x * kThreads + threadIdx.x;
  const int first = blockIdx.y * kRowsAtOnce;
  const bool inside = word < words;
  uint32_t codes[kRowsAtOnce] = {}, scale[kRowsAtOnce] = {};
  OrderedZeroPoint<T> zero[kRowsAtOnce];
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) {
    if (!inside || first + i >= rows) continue;
    const int64_t row = first_row + first + i;
    const int64_t group = row * p.groups + group_of_chunk(word / kWordsPerChunk);
    codes[i] = __ldg(reinterpret_cast<const uint32_t*>(p.codes + row * (p.k / 2)) + word);
    scale[i] = __ldg(reinterpret_cast<const unsigned short*>(p.scales) + group) * kBothHalves;
    const uint32_t byte = p.zeros != nullptr ? __ldg(p.zeros + group / 2) : 0;
    zero[i] = OrderedZeroPoint<T>::from_nibble(nibble_of(byte, static_cast<uint32_t>(group)));
  }
  let_next_kernel_start();
  wait_for_previous_kernel();  // which may still read the previous slice
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) {
    if (!inside || first + i >= rows) continue;
    uint4 eight;
    eight.x = scale_pair<T>(dequantize_byte(codes[i], byte_selector(0), zero[i]), scale[i]);
    eight.y = scale_pair<T>(dequantize_byte(codes[i], byte_selector(1), zero[i]), scale[i]);
    eight.z = scale_pair<T>(dequantize_byte(codes[i], byte_selector(2), zero[i]), scale[i]);
    eight.w = scale_pair<T>(dequantize_byte(codes[i], byte_selector(3), zero[i]), scale[i]);
    reinterpret_cast<uint4*>(weights + static_cast<int64_t>(first + i) * p.k)[word] = eight;
  }
}

}  // namespace

template <typename T>
cudaError_t launch_dequantize_first(const LinearParams<T>& params, const KernelConfig& config, DataType dtype,
                                    void* workspace, cudaStream_t stream) {
  T* const weights = static_cast<T*>(workspace);
  uint8_t* const scratch = static_cast<uint8_t*>(workspace) + config.workspace_bytes - kCublasLtWorkspaceBytes;
  const GroupOfChunk group_of_chunk(chunks_per_group(params.k, params.group_size));
  const auto blocks = static_cast<unsigned>((params.k / kCodesPerWord + kThreads - 1) / kThreads);
  for (int row = 0; row < params.n; row += config.rows_per_block) {
    const int rows = row + config.rows_per_block < params.n ? config.rows_per_block : params.n - row;
    const dim3 grid(blocks, static_cast<unsigned>((rows + kRowsAtOnce - 1) / kRowsAtOnce));
    cudaError_t status = launch_kernel(dequantize_kernel<T>, grid, kThreads, 0, config.overlap, stream, params,
                                       group_of_chunk, row, rows, weights);
    if (status != cudaSuccess) return status;
    DenseProduct product = {};
    product.m = params.m;
    product.n = rows;
    product.k = params.k;
    product.y_stride = params.n;
    product.dtype = dtype;
    product.x = params.x;
    product.weights = weights;
    product.bias = params.bias != nullptr ? params.bias + row : nullptr;
    product.y = params.y + row;
    status = multiply_by_cublas_lt(product, scratch, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template cudaError_t launch_dequantize_first(const LinearParams<__half>&, const KernelConfig&, DataType, void*,
                                             cudaStream_t);
template cudaError_t launch_dequantize_first(const LinearParams<__nv_bfloat16>&, const KernelConfig&, DataType, void*,
                                             cudaStream_t);

}  // namespace awq2trt
