// The properties of the current CUDA device on which the choice of a kernel depends.
#pragma once

#include <cuda_runtime_api.h>

namespace awq2trt {

struct Device {
  int sm;  // 87 for compute capability 8.7
  int multiprocessors;
  int max_shared_bytes;  // per block, after opting in to more than 48 KiB
  bool wgmma;            // whether kernels with Hopper's own products (wgmma.cuh) run: this build has them, too
};

// Whether blocks of a kernel may start while the previous kernel is still finishing (overlap.cuh).
inline bool can_overlap(const Device& device) { return device.sm >= 90; }

// Reads the current device.
cudaError_t query_device(Device* device);

}  // namespace awq2trt
