// Runs before the kernels that do not prepare their inputs themselves: writes normed and rotated queries to the
// workspace, new keys and values to the cache. One warp for each head of each new token.
#include "kernels/cached_attention/launchers.cuh"
#include "kernels/cached_attention/prepare_head.cuh"
#include "kernels/device/overlap.cuh"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

template <int kHeadDim, typename T, typename C>
__global__ void __launch_bounds__(kThreads) prepare_kernel(AttentionParams<T, C> p) {
  __shared__ __align__(16) T scratch_shared[std::is_same_v<C, T> ? 1 : kWarps][kHeadDim];
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int lane = threadIdx.x % kWarpSize;
  const int head = blockIdx.x * kWarps + threadIdx.x / kWarpSize;  // queries' heads, then key-value heads
  const int token = blockIdx.y, sequence = blockIdx.z;
  if (head >= p.heads + p.kv_heads) return;
  const int slot = position_within(p, p.position[sequence]) + token;
  if (head >= p.heads) {
    T* const scratch = scratch_shared[std::is_same_v<C, T> ? 0 : threadIdx.x / kWarpSize];
    write_key<kHeadDim>(p, sequence, token, head - p.heads, slot, lane, scratch);
    write_value<kHeadDim>(p, sequence, token, head - p.heads, slot, lane, scratch);
    return;
  }
  const int64_t row = static_cast<int64_t>(sequence) * p.tokens + token;
  const T* const source = p.qkv + (row * (p.heads + 2 * p.kv_heads) + head) * kHeadDim;
  T* const target = p.queries + (row * p.heads + head) * kHeadDim;
  prepare_rotated<kHeadDim>(p, source, target, p.query_norm, min(slot, p.capacity - 1), lane);
}

}  // namespace

template <int kHeadDim, typename T, typename C>
cudaError_t launch_prepare(const AttentionParams<T, C>& params, int batch, bool overlap, cudaStream_t stream) {
  const unsigned blocks = (params.heads + params.kv_heads + kWarps - 1) / kWarps;
  return launch_kernel(prepare_kernel<kHeadDim, T, C>, dim3(blocks, params.tokens, batch), kThreads, 0, overlap, stream,
                       params);
}

#define AWQ2TRT_INSTANTIATE(head_dim, T, C) \
  template cudaError_t launch_prepare<head_dim>(const AttentionParams<T, C>&, int, bool, cudaStream_t);
AWQ2TRT_FOR_EACH_ATTENTION(AWQ2TRT_INSTANTIATE)
#undef AWQ2TRT_INSTANTIATE

}  // namespace awq2trt
