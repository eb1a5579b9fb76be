// What the GPU itself can do, measured in the same run as the kernels: the denominators of every share we report.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace awq2trt {

// Every warp of every multiprocessor issues `iterations` x kMmaPerIteration mma.sync m16n8k16 (fp16 in, fp32 sums) from
// registers and nothing else: the upper limit of any kernel that uses this instruction. Operands are random; the speed
// of a GPU at its power limit depends on their values: `normal`ly distributed like activations and weights, or all of
// one exponent. `sink` [1] keeps the compiler from dropping the work; it is written only if a sum is a NaN.
constexpr int kMmaPerIteration = 32;
cudaError_t launch_mma_ceiling(int iterations, bool normal, float* sink, cudaStream_t stream);

// Floating-point operations of one such launch on the current device; 0 if the device cannot be queried.
int64_t mma_ceiling_flops(int iterations);

}  // namespace awq2trt
