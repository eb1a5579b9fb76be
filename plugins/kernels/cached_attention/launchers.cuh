// Launchers of the attention kernels, one for each head size, type and type of the cache; launch.cu chooses among them.
#pragma once

#include "kernels/cached_attention/attention_params.cuh"
#include "kernels/cached_attention/decode_shape.h"

namespace awq2trt {

// Head sizes that kernels exist for.
#define AWQ2TRT_FOR_EACH_HEAD_DIM(action, ...)                                                     \
  action(64, __VA_ARGS__) action(80, __VA_ARGS__) action(96, __VA_ARGS__) action(112, __VA_ARGS__) \
      action(128, __VA_ARGS__) action(256, __VA_ARGS__)

// Each with every type of the call and of the cache.
#define AWQ2TRT_FOR_EACH_ATTENTION(action)                        \
  AWQ2TRT_FOR_EACH_HEAD_DIM(action, __half, __half)               \
  AWQ2TRT_FOR_EACH_HEAD_DIM(action, __nv_bfloat16, __nv_bfloat16) \
  AWQ2TRT_FOR_EACH_HEAD_DIM(action, __half, int8_t)               \
  AWQ2TRT_FOR_EACH_HEAD_DIM(action, __nv_bfloat16, int8_t)

template <int kHeadDim, typename T, typename C>
cudaError_t launch_decode_attention(const AttentionParams<T, C>& params, const AttentionConfig& config, int batch,
                                    cudaStream_t stream);

// Queries into the workspace, keys and values into the cache.
template <int kHeadDim, typename T, typename C>
cudaError_t launch_prepare(const AttentionParams<T, C>& params, int batch, bool overlap, cudaStream_t stream);

template <int kHeadDim, typename T, typename C>
cudaError_t launch_prefill_attention(const AttentionParams<T, C>& params, int batch, cudaStream_t stream);

// Head sizes of 64 and 128, and only in builds for compute capability 9.0 (Device::wgmma).
template <int kHeadDim, typename T>
cudaError_t launch_warpgroup_attention(const AttentionParams<T>& params, int batch, cudaStream_t stream);

}  // namespace awq2trt
