// The arguments of every kernel, and the launchers that launch.cu chooses from.
#pragma once

#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {

// The call with the types of its tensors.
template <typename T>
struct LinearParams {
  const T* __restrict__ x;            // [M, K]
  const uint8_t* __restrict__ codes;  // [N, K] INT4, K/2 bytes a row
  const T* __restrict__ scales;       // [N, groups]
  const uint8_t* __restrict__ zeros;  // [N, groups] INT4, or nullptr
  const T* __restrict__ bias;         // [N], or nullptr
  T* __restrict__ y;                  // [M, N]
  float* __restrict__ partial_sums;   // workspace
  int m, n, k, groups, group_size;
  bool codes_aligned;  // every row of codes starts at a multiple of 16 bytes
};

inline bool is_aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename T>
LinearParams<T> linear_params(const GemmProblem& problem, const LinearTensors& tensors) {
  LinearParams<T> params = {};
  params.x = static_cast<const T*>(tensors.x);
  params.codes = static_cast<const uint8_t*>(tensors.codes);
  params.scales = static_cast<const T*>(tensors.scales);
  params.zeros = problem.has_zeros ? static_cast<const uint8_t*>(tensors.zeros) : nullptr;
  params.bias = problem.has_bias ? static_cast<const T*>(tensors.bias) : nullptr;
  params.y = static_cast<T*>(tensors.y);
  params.partial_sums = static_cast<float*>(tensors.workspace);
  params.m = problem.m;
  params.n = problem.n;
  params.k = problem.k;
  params.groups = problem.groups();
  params.group_size = problem.group_size;
  params.codes_aligned = problem.k % 32 == 0 && is_aligned(tensors.codes, 16);
  return params;
}

template <typename T>
cudaError_t launch_decode(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream);
template <typename T>
cudaError_t launch_decode_once(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream);
template <typename T>
cudaError_t launch_tile(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream);
// For codes that are aligned, and only in builds for compute capability 9.0 (Device::wgmma).
template <typename T>
cudaError_t launch_warpgroup(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream);
template <typename T>
cudaError_t launch_any_group(const LinearParams<T>& params, cudaStream_t stream);

// Layout of a decode block's shared memory for K, tokens, rows and warps of a block; choose_config() needs it too.
struct DecodeShared {
  static constexpr int kStep = 128;         // k that a warp takes at a time
  static constexpr int kTokenPadding = 32;  // elements; 64 bytes, see the kernel
  int token_stride;                         // elements of the activations' rows
  int slots;                                // of 16 rows' partial sums: one per tile and warp
  size_t bytes;

  DecodeShared(int m, int k, int rows_per_block, int warps)
      : token_stride((k + kStep - 1) / kStep * kStep + kTokenPadding),
        slots(rows_per_block / 16 * warps),
        bytes(size_t{2} * m * token_stride + size_t{4} * slots * m * 16) {}
};

// The same for a block of the decode-once kernel, which also holds all of its weights there.
struct DecodeOnceShared {
  static constexpr int kWarps = 8;
  static constexpr int kMaxBlocks = 3;  // a multiprocessor
  static constexpr int kStep = DecodeShared::kStep;
  static constexpr int kCodeBytes = 1024;      // of a unit, 16 rows x kStep codes
  static constexpr int kScaleBytes = 16 * 16;  // of a step, see RowScale
  int token_stride;                            // elements of the activations' rows
  int units;                                   // that a warp takes at most
  size_t bytes;

  DecodeOnceShared(int m, int k) {
    const int steps = (k + kStep - 1) / kStep;
    token_stride = steps * kStep + DecodeShared::kTokenPadding;
    units = (steps + kWarps - 1) / kWarps;
    bytes = size_t{2} * m * token_stride + size_t{kCodeBytes} * kWarps * units + size_t{kScaleBytes} * steps +
            size_t{4} * kWarps * m * 16;
  }
};

}  // namespace awq2trt
