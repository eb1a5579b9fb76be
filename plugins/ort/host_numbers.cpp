// Widening and rounding; see host_numbers.h.
#include "ort/host_numbers.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace awq2trt {
namespace ort {
namespace {

double widen(__half value) { return __half2float(value); }
double widen(__nv_bfloat16 value) { return __bfloat162float(value); }
double widen(float value) { return value; }

void assign(double value, __half* to) { *to = __double2half(value); }
void assign(double value, __nv_bfloat16* to) { *to = __double2bfloat16(value); }
void assign(double value, float* to) { *to = static_cast<float>(value); }

template <typename T>
double rounded(double value) {
  T stored;
  assign(value, &stored);
  return widen(stored);
}

// Calls body(T()) for the T that `type` names.
template <typename Body>
auto with_type(ElementType type, Body&& body) {
  switch (type) {
    case ElementType::kFloat16:
      return body(__half());
    case ElementType::kBFloat16:
      return body(__nv_bfloat16());
    default:
      return body(float());
  }
}

}  // namespace

std::vector<double> load_numbers(const void* tensor, ElementType type, int64_t first, int64_t count) {
  std::vector<double> numbers(static_cast<size_t>(count));
  with_type(type, [&](auto of_type) {
    const auto* const typed = static_cast<const decltype(of_type)*>(tensor) + first;
    for (int64_t i = 0; i < count; ++i) numbers[i] = widen(typed[i]);
  });
  return numbers;
}

void store_numbers(const double* numbers, int64_t count, ElementType type, void* tensor, int64_t first) {
  with_type(type, [&](auto of_type) {
    auto* const typed = static_cast<decltype(of_type)*>(tensor) + first;
    for (int64_t i = 0; i < count; ++i) assign(numbers[i], typed + i);
  });
}

double (*rounding_to(ElementType type))(double) {
  switch (type) {
    case ElementType::kFloat16:
      return rounded<__half>;
    case ElementType::kBFloat16:
      return rounded<__nv_bfloat16>;
    default:
      return rounded<float>;
  }
}

int64_t bytes_of_number(ElementType type) {
  return with_type(type, [](auto of_type) { return static_cast<int64_t>(sizeof(of_type)); });
}

}  // namespace ort
}  // namespace awq2trt
