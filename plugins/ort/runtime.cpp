// Errors that ONNX Runtime reports; see runtime.h.
#include "ort/runtime.h"

namespace awq2trt {
namespace ort {

void Runtime::throw_if_error(abi::Status* status) const {
  if (status == nullptr) return;
  const Failure failure(abi::function_at(api_, abi::kGetErrorMessage)(status),
                        abi::function_at(api_, abi::kGetErrorCode)(status));
  release(abi::kReleaseStatus, status);
  throw failure;
}

}  // namespace ort
}  // namespace awq2trt
