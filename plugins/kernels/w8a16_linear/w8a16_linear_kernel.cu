// y = x * W^T with 8-bit W, where reading W takes all the time: a head, which has a row for every token of a vocabulary
// and few activations to multiply them with.
//
// - A team of 8 or 32 lanes owns kRows weight rows and walks along k; a lane loads 16 codes of each row at once and,
//   with one or two tokens, has two such steps in flight (with more, registers would spill). With kRows = 4 and 16
//   warps a multiprocessor that is 64 KiB, three times what latency times bandwidth asks for. Activations are read
//   again by every team and stay in the L1 cache.
// - A code becomes fp32 by one byte permutation and one subtraction, which also takes off its zero point, exactly;
//   scales are applied to sums of 16 products. Up to 8 tokens share what was dequantized. More tokens are more blocks,
//   which find the weights in the L2 cache.
// - Rows that 16-byte loads do not fit take a slower kernel, with one warp per output.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/device/convert.cuh"
#include "kernels/device/global_loads.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"
#include "kernels/w8a16_linear/w8a16_linear.h"

namespace awq2trt {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kCodesPerLoad = 16;
constexpr int kCodesPerWord = 4;
constexpr int kWords = kCodesPerLoad / kCodesPerWord;
constexpr int kMaxTokens = 8;                 // of a block
constexpr int kLongRow = 2048;                // from which a whole warp shares a row: four steps or more
constexpr int kFewTokens = 2;                 // up to which registers suffice for 4 rows
constexpr uint32_t kSignFlips = 0x80808080u;  // makes INT8 codes unsigned: code + 128

template <typename T>
struct Params {
  const T* __restrict__ x;            // [M, K]
  const uint8_t* __restrict__ codes;  // [N, K] INT8
  const T* __restrict__ scales;       // [N, groups]
  const int8_t* __restrict__ zeros;   // [N, groups], or nullptr
  const T* __restrict__ bias;         // [N], or nullptr
  T* __restrict__ y;                  // [M, N]
  int m, n, k, groups, group_size;
};

// Code `i` of a word, sign flipped, as a float: 2^23 and an integer below 2^8 are one number without rounding. `offset`
// is 2^23 + 128 + zero.
__device__ __forceinline__ float code_of(uint32_t flipped, int i, float offset) {
  constexpr uint32_t kExponent = 0x4b000000u;  // of 2^23
  return __uint_as_float(__byte_perm(flipped, kExponent, 0x7650u | static_cast<uint32_t>(i))) - offset;
}

__device__ __forceinline__ float offset_of(int zero) { return 8388608.f + 128.f + static_cast<float>(zero); }

template <typename T, int kTokens, int kRows, int kLanes>
__global__ void __launch_bounds__(kThreads) rows_kernel(const Params<T> p) {
  const int lane = threadIdx.x % kLanes;
  const int team = static_cast<int>(blockIdx.x) * (kThreads / kLanes) + static_cast<int>(threadIdx.x) / kLanes;
  const int first_row = team * kRows, first_token = static_cast<int>(blockIdx.y) * kTokens;
  const int chunks = p.k / kCodesPerLoad;
  const int chunks_per_group = p.groups == 1 ? chunks : p.group_size / kCodesPerLoad;

  let_next_kernel_start();
  wait_for_previous_kernel();

  // Past the last row or token, a lane repeats the last one and does not store.
  int64_t rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) rows[r] = min(first_row + r, p.n - 1);
  const T* x[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) x[t] = p.x + static_cast<int64_t>(min(first_token + t, p.m - 1)) * p.k;

  float sums[kTokens][kRows] = {};
#pragma unroll(kTokens <= kFewTokens ? 2 : 1)
  for (int chunk = lane; chunk < chunks; chunk += kLanes) {
    const int group = chunk / chunks_per_group;
    uint4 codes[kRows];
    float scales[kRows], offsets[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) codes[r] = load_once(p.codes + rows[r] * p.k + chunk * kCodesPerLoad);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t index = rows[r] * p.groups + group;
      scales[r] = to_float(p.scales[index]);
      offsets[r] = offset_of(p.zeros != nullptr ? p.zeros[index] : 0);
    }
    float products[kTokens][kRows] = {};
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      float weights[kRows][kCodesPerWord];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint32_t words[kWords] = {codes[r].x, codes[r].y, codes[r].z, codes[r].w};
#pragma unroll
        for (int i = 0; i < kCodesPerWord; ++i) weights[r][i] = code_of(words[j] ^ kSignFlips, i, offsets[r]);
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const uint2 pairs = *reinterpret_cast<const uint2*>(x[t] + chunk * kCodesPerLoad + j * kCodesPerWord);
        const float values[kCodesPerWord] = {float_of_bits<T>(pairs.x & 0xffffu), float_of_bits<T>(pairs.x >> 16),
                                             float_of_bits<T>(pairs.y & 0xffffu), float_of_bits<T>(pairs.y >> 16)};
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int i = 0; i < kCodesPerWord; ++i) products[t][r] += values[i] * weights[r][i];
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[t][r] += scales[r] * products[t][r];
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum = sums[t][r];
#pragma unroll
      for (int distance = kLanes / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      const int row = first_row + r, token = first_token + t;
      if (lane != 0 || row >= p.n || token >= p.m) continue;
      p.y[static_cast<int64_t>(token) * p.n + row] =
          from_float<T>(sum + (p.bias != nullptr ? to_float(p.bias[row]) : 0.f));
    }
  }
}

// For any K and group size: one warp per output.
template <typename T>
__global__ void __launch_bounds__(kThreads) any_row_kernel(const Params<T> p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (output >= static_cast<int64_t>(p.m) * p.n) return;
  const int64_t token = output / p.n, row = output % p.n;
  float sum = 0.f;
  for (int k = lane; k < p.k; k += kWarpSize) {
    const int64_t index = row * p.groups + k / p.group_size;
    const int zero = p.zeros != nullptr ? p.zeros[index] : 0;
    const int code = static_cast<int8_t>(p.codes[row * p.k + k]) - zero;
    sum += to_float(p.x[token * p.k + k]) * (to_float(p.scales[index]) * static_cast<float>(code));
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (lane == 0) p.y[output] = from_float<T>(sum + (p.bias != nullptr ? to_float(p.bias[row]) : 0.f));
}

template <typename T, int kTokens, int kLanes>
cudaError_t launch_rows(const Params<T>& params, bool overlap, cudaStream_t stream) {
  constexpr int kRows = kTokens <= kFewTokens ? 4 : 2;
  constexpr int kRowsPerBlock = kThreads / kLanes * kRows;
  const dim3 grid((params.n + kRowsPerBlock - 1) / kRowsPerBlock, (params.m + kTokens - 1) / kTokens);
  return launch_kernel(rows_kernel<T, kTokens, kRows, kLanes>, grid, kThreads, 0, overlap, stream, params);
}

template <typename T, int kLanes>
cudaError_t launch_for_tokens(const Params<T>& params, bool overlap, cudaStream_t stream) {
  if (params.m == 1) return launch_rows<T, 1, kLanes>(params, overlap, stream);
  if (params.m == 2) return launch_rows<T, 2, kLanes>(params, overlap, stream);
  return launch_rows<T, kMaxTokens, kLanes>(params, overlap, stream);
}

bool is_aligned(const void* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

template <typename T>
cudaError_t launch_typed(const GemmProblem& problem, const LinearTensors& tensors, bool overlap, cudaStream_t stream) {
  Params<T> params = {};
  params.x = static_cast<const T*>(tensors.x);
  params.codes = static_cast<const uint8_t*>(tensors.codes);
  params.scales = static_cast<const T*>(tensors.scales);
  params.zeros = problem.has_zeros ? static_cast<const int8_t*>(tensors.zeros) : nullptr;
  params.bias = problem.has_bias ? static_cast<const T*>(tensors.bias) : nullptr;
  params.y = static_cast<T*>(tensors.y);
  params.m = problem.m;
  params.n = problem.n;
  params.k = problem.k;
  params.groups = problem.groups();
  params.group_size = problem.group_size;
  const bool whole_loads = problem.k % kCodesPerLoad == 0 && is_aligned(tensors.codes, kCodesPerLoad) &&
                           (params.groups == 1 || problem.group_size % kCodesPerLoad == 0);
  if (!whole_loads) {
    const int64_t blocks = (static_cast<int64_t>(params.m) * params.n + kWarps - 1) / kWarps;
    any_row_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(params);
    return cudaGetLastError();
  }
  return params.k >= kLongRow ? launch_for_tokens<T, kWarpSize>(params, overlap, stream)
                              : launch_for_tokens<T, 8>(params, overlap, stream);
}

}  // namespace

cudaError_t launch_w8a16_linear(const GemmProblem& problem, const LinearTensors& tensors, bool overlap,
                                cudaStream_t stream) {
  if (check_validity(problem) != nullptr) return cudaErrorInvalidValue;
  if (problem.m == 0) return cudaSuccess;
  const bool missing = tensors.x == nullptr || tensors.codes == nullptr || tensors.scales == nullptr ||
                       tensors.y == nullptr || (problem.has_zeros && tensors.zeros == nullptr) ||
                       (problem.has_bias && tensors.bias == nullptr);
  if (missing) return cudaErrorInvalidValue;
  if (!is_aligned(tensors.x, 16) || !is_aligned(tensors.y, 16) || !is_aligned(tensors.scales, 2)) {
    return cudaErrorMisalignedAddress;
  }
  return problem.dtype == DataType::kHalf ? launch_typed<__half>(problem, tensors, overlap, stream)
                                          : launch_typed<__nv_bfloat16>(problem, tensors, overlap, stream);
}

}  // namespace awq2trt
