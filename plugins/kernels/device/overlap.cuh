// Programmatic dependent launch (compute capability 9.0 and later): the next kernel's blocks may start while this one's
// are still finishing, and wait inside for its results. Hides the gap of a microsecond or two between small kernels.
//
// A kernel launched this way must call wait_for_previous_kernel() before it reads or writes anything the previous
// kernels may touch. They may not touch weights; see LinearTensors.
#pragma once

#include <cuda_runtime_api.h>

namespace awq2trt {

__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches `kernel`; with `overlap` the device must have compute capability 9.0.
template <typename... Parameters>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, bool overlap,
                          cudaStream_t stream, Parameters... arguments) {
  cudaError_t status =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes));
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlap ? 1 : 0;
  void* pointers[] = {static_cast<void*>(&arguments)...};
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
}

}  // namespace awq2trt
