// Launchers of the attention kernels, one for each type and head size; launch.cu chooses among them.
#pragma once

#include "kernels/cached_attention/attention_params.cuh"
#include "kernels/cached_attention/decode_shape.h"

namespace awq2trt {

// Head sizes that kernels exist for.
#define AWQ2TRT_FOR_EACH_HEAD_DIM(action) action(64) action(80) action(96) action(112) action(128) action(256)

template <typename T, int kHeadDim>
cudaError_t launch_decode_attention(const AttentionParams<T>& params, const AttentionConfig& config, int batch,
                                    cudaStream_t stream);

// Queries into the workspace, keys and values into the cache.
template <typename T, int kHeadDim>
cudaError_t launch_prepare(const AttentionParams<T>& params, int batch, bool overlap, cudaStream_t stream);

template <typename T, int kHeadDim>
cudaError_t launch_prefill_attention(const AttentionParams<T>& params, int batch, cudaStream_t stream);

}  // namespace awq2trt
