// The loop of bare mma.sync that bench_ceilings.h describes. In: a number of iterations. Only its time matters.
#include "bench/bench_ceilings.h"

#include <cuda_fp16.h>

#include "kernels/device/device.h"
#include "kernels/device/half_pair.h"
#include "kernels/device/tensor_core.cuh"

namespace awq2trt {
namespace {

constexpr int kThreads = 128;  // 4 warps per block, two blocks per multiprocessor: as many as the tile kernel has
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kFlopsPerMma = 2 * 16 * 8 * 16;

// A pair of random fp16 for each seed: signs and significands random, magnitudes between 1/8 and 1/4.
__device__ uint32_t narrow_pair(uint32_t number) { return (number * 2654435761u & 0x83ff83ffu) | 0x30003000u; }

// A pair of normal fp16, of variance 1 (Box and Muller, 1958).
__device__ uint32_t normal_pair(uint32_t number) {
  const uint32_t hash = (number ^ number >> 15) * 2246822519u, other = (hash ^ hash >> 13) * 3266489917u;
  const float radius = sqrtf(-2.f * __logf((hash >> 8) * 0x1p-24f + 0x1p-25f));
  float sine, cosine;
  __sincosf(6.2831853f * ((other >> 8) * 0x1p-24f), &sine, &cosine);
  return bits_of(__floats2half2_rn(radius * sine, radius * cosine));
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    mma_ceiling_kernel(int iterations, bool normal, float* sink) {
  // Operands that differ between lanes and are not zero, since zeros draw less power.
  uint32_t a[4][4], b[8][2];
  const uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * 32;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    a[i / 4][i % 4] = normal ? normal_pair(first + i) : narrow_pair(first + i);
    b[i / 2][i % 2] = normal ? normal_pair(first + 16 + i) : narrow_pair(first + 16 + i);
  }
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

cudaError_t launch_mma_ceiling(int iterations, bool normal, float* sink, cudaStream_t stream) {
  Device device = {};
  const cudaError_t status = query_device(&device);
  if (status != cudaSuccess) return status;
  mma_ceiling_kernel<<<device.multiprocessors * kBlocksPerMultiprocessor, kThreads, 0, stream>>>(iterations, normal,
                                                                                                 sink);
  return cudaGetLastError();
}

int64_t mma_ceiling_flops(int iterations) {
  Device device = {};
  if (query_device(&device) != cudaSuccess) return 0;
  return int64_t{iterations} * kMmaPerIteration * kFlopsPerMma * (kThreads / kWarpSize) * kBlocksPerMultiprocessor *
         device.multiprocessors;
}

}  // namespace awq2trt
