// The rules of FusedLinear; see fused_linear.h.
#include "ops/fused_linear.h"

#include <algorithm>

#include "ops/gated_activation.h"
#include "ops/residual_norm.h"
#include "ops/w4a16_linear.h"

namespace awq2trt {
namespace fused_linear {
namespace {

using Wide = long long;  // the type for %lld

// The error of a part's rules, with the name of the fused operator.
bool of_part(bool passed, ErrorText* error) {
  if (passed) return true;
  const ErrorText said = *error;
  return fail(error, "%s, part %s", kName, said.text);
}

w4a16_linear::Attributes linear_of(const Attributes& a) { return {a.group_size, a.has_zeros, a.has_bias}; }

residual_norm::Attributes norm_of(const Attributes& a) { return {a.has_residual, a.has_norm_bias, a.rms, a.epsilon}; }

bool check_flags(const Attributes& a, ErrorText* error) {
  return check_flag(kName, kHasZeros, a.has_zeros, error) && check_flag(kName, kHasBias, a.has_bias, error) &&
         check_flag(kName, kHasNorm, a.has_norm, error) && check_flag(kName, kHasResidual, a.has_residual, error) &&
         check_flag(kName, kHasNormBias, a.has_norm_bias, error) && check_flag(kName, kRms, a.rms, error) &&
         check_flag(kName, kHasActivation, a.has_activation, error) && check_flag(kName, kGated, a.gated, error) &&
         check_flag(kName, kHasAddend, a.has_addend, error);
}

// Checks an attribute of the norm or of the activation if that part is missing.
bool check_absent(const char* name, bool is_zero, const char* part, ErrorText* error) {
  return is_zero || fail(error, "%s: attribute %s needs %s = 1", kName, name, part);
}

bool describe_norm(const Attributes& a, const Shape* inputs, ElementType x_type, NormProblem* problem,
                   ErrorText* error) {
  const residual_norm::Attributes attributes = norm_of(a);
  Shape shapes[residual_norm::kMaxInputs] = {inputs[kX]};
  for (int32_t i = 1; i < residual_norm::input_count(attributes); ++i)
    shapes[i] = inputs[i];  // the same inputs in the same order
  return of_part(residual_norm::describe_problem(attributes, shapes, x_type, problem, error), error);
}

bool describe_linear(const Attributes& a, const Shape* inputs, ElementType x_type, GemmProblem* problem,
                     ErrorText* error) {
  const w4a16_linear::Attributes attributes = linear_of(a);
  Shape shapes[w4a16_linear::kMaxInputs] = {inputs[kX]};
  for (int32_t i = 1; i < w4a16_linear::input_count(attributes); ++i) shapes[i] = inputs[codes_input(a) + i - 1];
  return of_part(w4a16_linear::describe_problem(attributes, shapes, x_type, problem, error), error);
}

bool describe_activation(const Attributes& a, const GemmProblem& linear, ElementType x_type, ActivationProblem* problem,
                         ErrorText* error) {
  if (a.gated != 0) {
    const int64_t sizes[] = {linear.m, linear.n};
    return of_part(gated_activation::describe_problem(a.activation, {sizes, 2}, x_type, problem, error), error);
  }
  *problem = {linear.m, linear.n, static_cast<Activation>(a.activation), linear.dtype};
  const char* const reason = check_validity(*problem);
  return reason == nullptr ||
         fail(error, "%s, activation of %d rows, N = %d: %s", kName, problem->rows, problem->width, reason);
}

bool check_addend(const Attributes& a, const Shape* inputs, const FusedLinearProblem& problem, ErrorText* error) {
  const Shape &addend = inputs[addend_input(a)], &x = inputs[kX];
  if (addend.rank != x.rank || !std::equal(x.sizes, x.sizes + x.rank - 1, addend.sizes) ||
      addend.last() != problem.linear.n) {
    return fail(error, "%s: the addend must have the shape of y, that of X with N = %d in the last place", kName,
                problem.linear.n);
  }
  const char* const reason = check_validity(problem);
  return reason == nullptr || fail(error, "%s with N = %d: %s", kName, problem.linear.n, reason);
}

}  // namespace

bool check_attributes(const Attributes& a, ErrorText* error) {
  if (!check_flags(a, error)) return false;
  if (a.has_norm == 0 && a.has_activation == 0 && a.has_addend == 0) {
    return fail(error, "%s: attribute %s, %s or %s must be 1; a linear by itself is a %s", kName, kHasNorm,
                kHasActivation, kHasAddend, w4a16_linear::kName);
  }
  if (a.has_norm == 0 && !(check_absent(kHasResidual, a.has_residual == 0, kHasNorm, error) &&
                           check_absent(kHasNormBias, a.has_norm_bias == 0, kHasNorm, error) &&
                           check_absent(kRms, a.rms == 0, kHasNorm, error) &&
                           check_absent(kEpsilon, a.epsilon == 0.0F, kHasNorm, error))) {
    return false;
  }
  if (a.has_norm_bias != 0 && a.rms != 0) {
    return fail(error, "%s: an RMS norm has no bias: %s and %s cannot both be 1", kName, kHasNormBias, kRms);
  }
  if (a.has_activation == 0 && !(check_absent(kActivation, a.activation == 0, kHasActivation, error) &&
                                 check_absent(kGated, a.gated == 0, kHasActivation, error))) {
    return false;
  }
  if (a.gated != 0 && a.has_addend != 0) {
    return fail(error, "%s: attributes %s and %s cannot both be 1", kName, kGated, kHasAddend);
  }
  return of_part(w4a16_linear::check_attributes(linear_of(a), error), error) &&
         of_part(residual_norm::check_attributes(norm_of(a), error), error) &&
         of_part(gated_activation::check_activation(a.activation, error), error);
}

bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error) {
  const int32_t expected = input_count(attributes);
  return count == expected ||
         fail(error,
              "%s: expected %d inputs for has_norm = %d, has_residual = %d, has_norm_bias = %d, has_zeros = %d, "
              "has_bias = %d and has_addend = %d, got %d",
              kName, expected, attributes.has_norm, attributes.has_residual, attributes.has_norm_bias,
              attributes.has_zeros, attributes.has_bias, attributes.has_addend, count);
}

bool check_output_count(const Attributes& attributes, int32_t count, ErrorText* error) {
  const int32_t expected = output_count(attributes);
  return count == expected || fail(error, "%s: expected %d outputs for has_residual = %d, got %d", kName, expected,
                                   attributes.has_residual, count);
}

bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType x_type, ErrorText* error) {
  if (tensor == kX) return check_activations(kName, tensor, type, error);
  const bool is_code = tensor == codes_input(attributes) || tensor == zeros_input(attributes);
  return check_tensor_type(kName, tensor, type, is_code ? ElementType::kInt4 : x_type, error);
}

bool check_shapes(const Attributes& attributes, int32_t x_rank, const Shape& codes, ErrorText* error) {
  if (!of_part(w4a16_linear::check_ranks(linear_of(attributes), x_rank, codes.rank, error), error)) return false;
  const int64_t n = codes.sizes[0];
  return attributes.gated == 0 || n < 0 || n % 2 == 0 ||
         fail(error, "%s: with a gated activation, codes must have an even number of rows N, got %lld", kName, Wide{n});
}

bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type,
                      FusedLinearProblem* problem, ErrorText* error) {
  *problem = {};
  problem->has_norm = attributes.has_norm != 0;
  problem->has_activation = attributes.has_activation != 0;
  problem->gated = attributes.gated != 0;
  problem->has_addend = attributes.has_addend != 0;
  return describe_linear(attributes, inputs, x_type, &problem->linear, error) &&
         (!problem->has_norm || describe_norm(attributes, inputs, x_type, &problem->norm, error)) &&
         (!problem->has_activation ||
          describe_activation(attributes, problem->linear, x_type, &problem->activation, error)) &&
         (!problem->has_addend || check_addend(attributes, inputs, *problem, error));
}

}  // namespace fused_linear
}  // namespace awq2trt
