// Asks the CUDA runtime about the current device.
#include "kernels/device/device.h"

#include "kernels/device/tensor_map.h"

namespace awq2trt {
namespace {

#ifdef AWQ2TRT_HOPPER
constexpr bool kBuiltForHopper = true;
#else
constexpr bool kBuiltForHopper = false;
#endif
constexpr int kHopperSm = 90;

}  // namespace

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
  device->wgmma = kBuiltForHopper && device->sm == kHopperSm && has_tensor_maps();
  return status;
}

}  // namespace awq2trt
