// Names of types and text of errors; see operator.h.
#include "ops/operator.h"

#include <algorithm>
#include <climits>
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

bool check_flag(const char* op, const char* name, int32_t value, ErrorText* error) {
  return value == 0 || value == 1 || fail(error, "%s: attribute %s must be 0 or 1, got %d", op, name, value);
}

bool check_tensor_type(const char* op, int32_t tensor, ElementType type, ElementType expected, ErrorText* error) {
  return type == expected ||
         fail(error, "%s: tensor %d must be %s, got %s", op, tensor, name_of(expected), name_of(type));
}

bool check_activations(const char* op, int32_t tensor, ElementType type, ErrorText* error) {
  return type == ElementType::kFloat16 || type == ElementType::kBFloat16 ||
         fail(error, "%s: tensor %d must be fp16 or bf16, got %s", op, tensor, name_of(type));
}

bool has_sizes(const Shape& shape, std::initializer_list<int64_t> sizes) {
  return shape.rank == static_cast<int32_t>(sizes.size()) && std::equal(sizes.begin(), sizes.end(), shape.sizes);
}

bool fits_int(int64_t size) { return size >= 0 && size <= INT_MAX; }

int64_t count_rows(const Shape& shape) {
  int64_t rows = 1;
  for (int32_t i = 0; i + 1 < shape.rank; ++i) {
    if (!fits_int(shape.sizes[i])) return -1;
    rows *= shape.sizes[i];
    if (!fits_int(rows)) return -1;
  }
  return rows;
}

}  // namespace awq2trt
