// The device of a node, and errors of CUDA; see gpu.h.
#include "ort/gpu.h"

#include <string>

#include "ort/runtime.h"

namespace awq2trt {
namespace ort {

void throw_if_cuda_error(cudaError_t status, const char* op) {
  if (status != cudaSuccess) throw Failure(std::string(op) + ": " + cudaGetErrorString(status));
}

const Device& NodeDevice::get() {
  std::call_once(once_, [this] { throw_if_cuda_error(query_device(&device_), op_); });
  return device_;
}

}  // namespace ort
}  // namespace awq2trt
