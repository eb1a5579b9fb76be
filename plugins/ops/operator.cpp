// Names of types and text of errors; see operator.h.
#include "ops/operator.h"

#include <cstdarg>
#include <cstdio>

namespace awq2trt {

const char* name_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return "fp32";
    case ElementType::kFloat16:
      return "fp16";
    case ElementType::kBFloat16:
      return "bf16";
    case ElementType::kInt4:
      return "int4";
    case ElementType::kInt8:
      return "int8";
    case ElementType::kInt32:
      return "int32";
    case ElementType::kInt64:
      return "int64";
    case ElementType::kUint8:
      return "uint8";
    case ElementType::kOther:
      break;
  }
  return "another type";
}

bool fail(ErrorText* error, const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error->text, sizeof(error->text), format, arguments);
  va_end(arguments);
  return false;
}

}  // namespace awq2trt
