// What the GPU itself can do, measured beside the kernels in the same run: the denominators of every share we report.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace awq2trt {

// Every warp of every multiprocessor issues `iterations` x kMmaPerIteration mma.sync m16n8k16 (fp16 in, fp32 sums) from
// registers and nothing else: the most that any kernel made of that instruction can reach. Operands are random; how
// fast a GPU at its power limit goes depends on their values: `normal`ly distributed like activations and weights, or
// all of one exponent. `sink` [1] keeps the compiler from dropping the work; it is written only if a sum is a NaN.
constexpr int kMmaPerIteration = 32;
cudaError_t launch_mma_ceiling(int iterations, bool normal, float* sink, cudaStream_t stream);

// Floating-point operations of one such launch on the current device; 0 if it cannot be asked.
int64_t mma_ceiling_flops(int iterations);

}  // namespace awq2trt
