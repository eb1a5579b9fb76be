// Shared by operators on the CUDA provider. In: the current device, and the result of a launch. Out: the device's
// properties, and errors as Failure.
#pragma once

#include <mutex>

#include <cuda_runtime_api.h>

#include "kernels/device/device.h"

namespace awq2trt {
namespace ort {

// Throws a Failure that begins with the operator's name.
void throw_if_cuda_error(cudaError_t status, const char* op);

// The GPU of a node: the current one when the node computes for the first time.
class NodeDevice {
 public:
  explicit NodeDevice(const char* op) : op_(op) {}

  // May be called by several threads at once.
  const Device& get();

  bool can_overlap() { return awq2trt::can_overlap(get()); }

 private:
  const char* const op_;
  std::once_flag once_;
  Device device_ = {};
};

}  // namespace ort
}  // namespace awq2trt
