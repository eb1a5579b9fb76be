// Asks the CUDA runtime about the current device.
#include "kernels/device/device.h"

namespace awq2trt {

cudaError_t query_device(Device* device) {
  int ordinal = 0, major = 0, minor = 0;
  cudaError_t status = cudaGetDevice(&ordinal);
  const auto read = [&](int* value, cudaDeviceAttr attribute) {
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(value, attribute, ordinal);
  };
  read(&major, cudaDevAttrComputeCapabilityMajor);
  read(&minor, cudaDevAttrComputeCapabilityMinor);
  read(&device->multiprocessors, cudaDevAttrMultiProcessorCount);
  read(&device->max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device->sm = 10 * major + minor;
  device->cublas_lt = false;
  return status;
}

}  // namespace awq2trt
