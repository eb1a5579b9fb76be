// In: bytes, an ONNX model. Whatever they are, the answer is weights that lie in a file beside it and have a size.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "ort/stored_weights.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view model(reinterpret_cast<const char*>(data), size);
  for (const awq2trt::ort::StoredWeight& weight : awq2trt::ort::find_stored_weights(model, 1)) {
    if (weight.bytes == 0 || weight.name.empty() || weight.file.empty()) std::abort();
    if (weight.file.find('/') != std::string::npos || weight.offset + weight.bytes < weight.offset) std::abort();
    for (const int64_t axis : weight.shape) {
      if (axis <= 0) std::abort();
    }
  }
  return 0;
}
