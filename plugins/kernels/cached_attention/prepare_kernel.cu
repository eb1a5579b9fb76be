// Before the kernels that do not do it themselves: queries normed and rotated into the workspace, new keys and values
// into the cache. A warp for each head of each new token.
#include "kernels/cached_attention/launchers.cuh"
#include "kernels/cached_attention/prepare_head.cuh"
#include "kernels/device/overlap.cuh"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads) prepare_kernel(AttentionParams<T> p) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int lane = threadIdx.x % kWarpSize;
  const int head = blockIdx.x * kWarps + threadIdx.x / kWarpSize;  // queries' heads, then key-value heads
  const int token = blockIdx.y, sequence = blockIdx.z;
  if (head >= p.heads + p.kv_heads) return;
  const int slot = position_within(p, p.position[sequence]) + token;
  if (head >= p.heads) {
    write_key<T, kHeadDim>(p, sequence, token, head - p.heads, slot, lane);
    write_value<T, kHeadDim>(p, sequence, token, head - p.heads, slot, lane);
    return;
  }
  const int64_t row = static_cast<int64_t>(sequence) * p.tokens + token;
  const T* const source = p.qkv + (row * (p.heads + 2 * p.kv_heads) + head) * kHeadDim;
  T* const target = p.queries + (row * p.heads + head) * kHeadDim;
  prepare_rotated<T, kHeadDim>(p, source, target, p.query_norm, min(slot, p.capacity - 1), lane);
}

}  // namespace

template <typename T, int kHeadDim>
cudaError_t launch_prepare(const AttentionParams<T>& params, int batch, bool overlap, cudaStream_t stream) {
  const unsigned blocks = (params.heads + params.kv_heads + kWarps - 1) / kWarps;
  return launch_kernel(prepare_kernel<T, kHeadDim>, dim3(blocks, params.tokens, batch), kThreads, 0, overlap, stream,
                       params);
}

#define AWQ2TRT_INSTANTIATE(head_dim)                                                                             \
  template cudaError_t launch_prepare<__half, head_dim>(const AttentionParams<__half>&, int, bool, cudaStream_t); \
  template cudaError_t launch_prepare<__nv_bfloat16, head_dim>(const AttentionParams<__nv_bfloat16>&, int, bool,  \
                                                               cudaStream_t);
AWQ2TRT_FOR_EACH_HEAD_DIM(AWQ2TRT_INSTANTIATE)
#undef AWQ2TRT_INSTANTIATE

}  // namespace awq2trt
