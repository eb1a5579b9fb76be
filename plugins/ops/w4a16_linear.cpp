// The rules of W4A16Linear and W8A16Linear; see w4a16_linear.h.
#include "ops/w4a16_linear.h"

namespace awq2trt {
namespace w4a16_linear {
namespace {

using Wide = long long;  // what %lld takes

}  // namespace

Role role_of(int32_t tensor, const Attributes& attributes) {
  if (tensor == kX) return Role::kActivations;
  if (tensor == kCodes || tensor == zeros_input(attributes)) return Role::kCodes;
  return Role::kLikeActivations;
}

bool check_attributes(const Attributes& attributes, ErrorText* error) {
  if (attributes.group_size < 1) {
    return fail(error, "%s: attribute %s must be at least 1, got %d", name_of(attributes), kGroupSize,
                attributes.group_size);
  }
  return check_flag(name_of(attributes), kHasZeros, attributes.has_zeros, error) &&
         check_flag(name_of(attributes), kHasBias, attributes.has_bias, error);
}

bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error) {
  const int32_t expected = input_count(attributes);
  return count == expected || fail(error, "%s: expected %d inputs for has_zeros = %d and has_bias = %d, got %d",
                                   name_of(attributes), expected, attributes.has_zeros, attributes.has_bias, count);
}

bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType x_type, ErrorText* error) {
  switch (role_of(tensor, attributes)) {
    case Role::kActivations:
      return check_activations(name_of(attributes), tensor, type, error);
    case Role::kCodes:
      return check_tensor_type(name_of(attributes), tensor, type, code_type(attributes.code_bits), error);
    case Role::kLikeActivations:
      break;
  }
  return check_tensor_type(name_of(attributes), tensor, type, x_type, error);
}

bool check_ranks(const Attributes& attributes, int32_t x_rank, int32_t codes_rank, ErrorText* error) {
  return (x_rank >= 1 && codes_rank == 2) ||
         fail(error, "%s: expected X [..., K] and codes [N, K], got %d and %d dimensions", name_of(attributes), x_rank,
              codes_rank);
}

bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, GemmProblem* problem,
                      ErrorText* error) {
  const Shape &x = inputs[kX], &codes = inputs[kCodes], &scales = inputs[kScales];
  if (x.rank < 1 || codes.rank != 2 || scales.rank != 2) {
    return fail(error, "%s: expected X [..., K], codes [N, K] and scales [N, groups], got %d, %d and %d dimensions",
                name_of(attributes), x.rank, codes.rank, scales.rank);
  }
  const int64_t n = codes.sizes[0], k = codes.sizes[1];
  if (x.last() != k) {
    return fail(error, "%s: the last dimension of X is %lld, but the codes are for K = %lld", name_of(attributes),
                Wide{x.last()}, Wide{k});
  }
  int64_t tokens = 1;
  for (int32_t i = 0; i + 1 < x.rank && fits_int(tokens) && tokens > 0; ++i) {
    tokens = fits_int(x.sizes[i]) ? tokens * x.sizes[i] : x.sizes[i];
  }
  if (!fits_int(tokens) || !fits_int(n) || !fits_int(k)) {
    return fail(error, "%s: %lld tokens, N = %lld, K = %lld: negative, or beyond 2^31", name_of(attributes),
                Wide{tokens}, Wide{n}, Wide{k});
  }
  *problem = {static_cast<int>(tokens),
              static_cast<int>(n),
              static_cast<int>(k),
              attributes.group_size,
              x_type == ElementType::kFloat16 ? DataType::kHalf : DataType::kBFloat16,
              attributes.has_zeros != 0,
              attributes.has_bias != 0};
  if (const char* const reason = check_validity(*problem)) {
    return fail(error, "%s with N = %d, K = %d, group_size = %d: %s", name_of(attributes), problem->n, problem->k,
                problem->group_size, reason);
  }
  const int groups = problem->groups();
  if (scales.sizes[0] != n || scales.sizes[1] != groups) {
    return fail(error, "%s: expected scales [%d, %d] for N = %d, K = %d, group_size = %d; got [%lld, %lld]",
                name_of(attributes), problem->n, groups, problem->n, problem->k, problem->group_size,
                Wide{scales.sizes[0]}, Wide{scales.sizes[1]});
  }
  if (attributes.has_zeros != 0) {
    const Shape& zeros = inputs[zeros_input(attributes)];
    if (zeros.rank != 2 || zeros.sizes[0] != n || zeros.sizes[1] != groups) {
      return fail(error, "%s: zeros must have the shape of the scales, [%d, %d]", name_of(attributes), problem->n,
                  groups);
    }
  }
  if (attributes.has_bias != 0) {
    const Shape& bias = inputs[bias_input(attributes)];
    if (bias.rank != 1 || bias.sizes[0] != n) {
      return fail(error, "%s: the bias must have shape [%d]", name_of(attributes), problem->n);
    }
  }
  return true;
}

}  // namespace w4a16_linear
}  // namespace awq2trt
