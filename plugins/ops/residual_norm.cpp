// The rules of ResidualNorm; see residual_norm.h.
#include "ops/residual_norm.h"

#include <algorithm>

namespace awq2trt {
namespace residual_norm {

bool check_attributes(const Attributes& attributes, ErrorText* error) {
  if (!check_flag(kName, kHasResidual, attributes.has_residual, error) ||
      !check_flag(kName, kHasBias, attributes.has_bias, error) || !check_flag(kName, kRms, attributes.rms, error)) {
    return false;
  }
  return attributes.epsilon >= 0.0F ||
         fail(error, "%s: attribute %s cannot be negative, got %g", kName, kEpsilon, double{attributes.epsilon});
}

bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error) {
  const int32_t expected = input_count(attributes);
  return count == expected || fail(error, "%s: expected %d inputs for has_residual = %d and has_bias = %d, got %d",
                                   kName, expected, attributes.has_residual, attributes.has_bias, count);
}

bool check_output_count(const Attributes& attributes, int32_t count, ErrorText* error) {
  const int32_t expected = output_count(attributes);
  return count == expected || fail(error, "%s: expected %d outputs for has_residual = %d, got %d", kName, expected,
                                   attributes.has_residual, count);
}

bool check_type(int32_t tensor, ElementType type, ElementType x_type, ErrorText* error) {
  return check_tensor_type(kName, tensor, type, x_type, error);
}

bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, NormProblem* problem,
                      ErrorText* error) {
  const Shape& x = inputs[kX];
  if (x.rank < 1) return fail(error, "%s: expected X [..., H], got no dimensions", kName);
  const int64_t rows = count_rows(x), width = x.last();
  if (rows < 0 || !fits_int(width)) return fail(error, "%s: sizes of X are negative, or beyond 2^31", kName);
  *problem = {static_cast<int>(rows),
              static_cast<int>(width),
              attributes.epsilon,
              attributes.rms != 0,
              attributes.has_residual != 0,
              attributes.has_bias != 0,
              x_type == ElementType::kFloat16 ? DataType::kHalf : DataType::kBFloat16};
  if (const char* const reason = check_validity(*problem)) {
    return fail(error, "%s with %d rows, H = %d: %s", kName, problem->rows, problem->width, reason);
  }
  if (attributes.has_residual != 0) {
    const Shape& residual = inputs[residual_input(attributes)];
    if (residual.rank != x.rank || !std::equal(x.sizes, x.sizes + x.rank, residual.sizes)) {
      return fail(error, "%s: the residual must have the shape of X", kName);
    }
  }
  if (!has_sizes(inputs[gain_input(attributes)], {width})) {
    return fail(error, "%s: the gain must have shape [%d]", kName, problem->width);
  }
  if (attributes.has_bias != 0 && !has_sizes(inputs[bias_input(attributes)], {width})) {
    return fail(error, "%s: the bias must have shape [%d]", kName, problem->width);
  }
  return true;
}

}  // namespace residual_norm
}  // namespace awq2trt
