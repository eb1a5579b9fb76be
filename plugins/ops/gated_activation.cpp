// The rules of GatedActivation; see gated_activation.h.
#include "ops/gated_activation.h"

namespace awq2trt {
namespace gated_activation {

using Wide = long long;  // what %lld takes

bool check_activation(int32_t activation, ErrorText* error) {
  const auto last = static_cast<int32_t>(Activation::kRelu);
  return (activation >= 0 && activation <= last) ||
         fail(error, "%s: attribute %s must be 0 to %d, got %d", kName, kActivation, last, activation);
}

bool check_input_count(int32_t count, ErrorText* error) {
  return count == kInputs || fail(error, "%s: expected %d input, got %d", kName, kInputs, count);
}

bool check_type(int32_t tensor, ElementType type, ElementType x_type, ErrorText* error) {
  return check_tensor_type(kName, tensor, type, x_type, error);
}

bool check_halves(const Shape& x, ErrorText* error) {
  if (x.rank < 1) return fail(error, "%s: expected X [..., 2 I], got no dimensions", kName);
  return x.last() < 0 || x.last() % 2 == 0 ||
         fail(error, "%s: the last dimension of X must be even, got %lld", kName, Wide{x.last()});
}

bool describe_problem(int32_t activation, const Shape& x, ElementType x_type, ActivationProblem* problem,
                      ErrorText* error) {
  if (!check_halves(x, error)) return false;
  const int64_t rows = count_rows(x), width = x.last() / 2;
  if (rows < 0 || !fits_int(width)) {
    return fail(error, "%s: sizes of X are negative, or beyond 2^31", kName);
  }
  *problem = {static_cast<int>(rows), static_cast<int>(width), static_cast<Activation>(activation),
              x_type == ElementType::kFloat16 ? DataType::kHalf : DataType::kBFloat16};
  const char* const reason = check_validity(*problem);
  return reason == nullptr || fail(error, "%s with %d rows, I = %d: %s", kName, problem->rows, problem->width, reason);
}

}  // namespace gated_activation
}  // namespace awq2trt
