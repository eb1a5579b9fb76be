#include "bench_ceilings.h"

#include "tensor_core.cuh"
#include "w4a16_linear.h"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;  // 4 warps a block, two blocks a multiprocessor: as many as the tile kernel has
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kFlopsPerMma = 2 * 16 * 8 * 16;

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) mma_ceiling_kernel(int iterations, float* sink) {
  // Operands that differ between lanes and are no zeros, which draw less power and so run faster than real data.
  uint32_t a[4][4], b[8][2];
  const uint32_t seed = (threadIdx.x * 2654435761u) ^ (blockIdx.x * 40503u);
#pragma unroll
  for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = ((seed >> i) & 0x83ff83ffu) | 0x30003000u;  // +-[1/8, 1/4)
#pragma unroll
  for (int i = 0; i < 16; ++i) b[i / 2][i % 2] = ((seed * (2 * i + 3)) & 0x83ff83ffu) | 0x30003000u;
  float c[8][4][4] = {};  // a 64 x 64 tile of sums, as in the tile kernel
  for (int iteration = 0; iteration < iterations; ++iteration) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) mma_16x8x16(c[i][r], a[r], b[i][0], b[i][1], __half{});
    }
  }
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 128; ++i) sum += c[i / 16][i / 4 % 4][i % 4];
  if (sum != sum) *sink = sum;
}

}  // namespace

cudaError_t launch_mma_ceiling(int iterations, float* sink, cudaStream_t stream) {
  Device device = {};
  const cudaError_t status = query_device(&device);
  if (status != cudaSuccess) return status;
  mma_ceiling_kernel<<<device.multiprocessors * kBlocksPerMultiprocessor, kThreads, 0, stream>>>(iterations, sink);
  return cudaGetLastError();
}

int64_t mma_ceiling_flops(int iterations) {
  Device device = {};
  if (query_device(&device) != cudaSuccess) return 0;
  return int64_t{iterations} * kMmaPerIteration * kFlopsPerMma * (kThreads / kWarpSize) * kBlocksPerMultiprocessor *
         device.multiprocessors;
}

}  // namespace awq2trt
