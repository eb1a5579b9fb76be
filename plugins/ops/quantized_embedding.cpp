// The rules of W4A16Embedding and W8A16Embedding; see quantized_embedding.h.
#include "ops/quantized_embedding.h"

namespace awq2trt {
namespace quantized_embedding {
namespace {

using Wide = long long;  // what %lld takes

}  // namespace

bool check_attributes(const Attributes& attributes, ErrorText* error) {
  const char* const name = name_of(attributes);
  if (attributes.group_size < 1) {
    return fail(error, "%s: attribute %s must be at least 1, got %d", name, kGroupSize, attributes.group_size);
  }
  return check_flag(name, kHasZeros, attributes.has_zeros, error);
}

bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error) {
  const int32_t expected = input_count(attributes);
  return count == expected || fail(error, "%s: expected %d inputs for has_zeros = %d, got %d", name_of(attributes),
                                   expected, attributes.has_zeros, count);
}

bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType scales_type,
                ErrorText* error) {
  ElementType expected = scales_type;
  if (tensor == kIds) {
    expected = ElementType::kInt64;
  } else if (tensor == kCodes || (tensor == kZeros && attributes.has_zeros != 0)) {
    expected = attributes.code_bits == 8 ? ElementType::kInt8 : ElementType::kInt4;
  }
  return check_tensor_type(name_of(attributes), tensor, type, expected, error);
}

bool check_ranks(const Attributes& attributes, int32_t codes_rank, ErrorText* error) {
  return codes_rank == 2 ||
         fail(error, "%s: expected codes [V, K], got %d dimensions", name_of(attributes), codes_rank);
}

bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType scales_type,
                      EmbeddingProblem* problem, ErrorText* error) {
  const char* const name = name_of(attributes);
  const Shape &scales = inputs[kScales], &codes = inputs[kCodes], &ids = inputs[kIds];
  if (!check_ranks(attributes, codes.rank, error)) return false;
  int64_t rows = 1;
  for (int32_t i = 0; i < ids.rank && fits_int(rows) && rows > 0; ++i) {
    rows = fits_int(ids.sizes[i]) ? rows * ids.sizes[i] : ids.sizes[i];
  }
  const int64_t vocabulary = codes.sizes[0], width = codes.sizes[1];
  if (!fits_int(rows) || !fits_int(vocabulary) || !fits_int(width)) {
    return fail(error, "%s: %lld ids, V = %lld, K = %lld: negative, or beyond 2^31", name, Wide{rows}, Wide{vocabulary},
                Wide{width});
  }
  *problem = {static_cast<int>(rows),   static_cast<int>(vocabulary),
              static_cast<int>(width),  attributes.group_size,
              attributes.code_bits,     scales_type == ElementType::kFloat16 ? DataType::kHalf : DataType::kBFloat16,
              attributes.has_zeros != 0};
  if (const char* const reason = check_validity(*problem)) {
    return fail(error, "%s with V = %d, K = %d, group_size = %d: %s", name, problem->vocabulary, problem->width,
                problem->group_size, reason);
  }
  const int64_t groups = problem->groups();
  if (!has_sizes(scales, {vocabulary, groups})) {
    return fail(error, "%s: expected scales [%lld, %lld] for V = %d, K = %d, group_size = %d", name, Wide{vocabulary},
                Wide{groups}, problem->vocabulary, problem->width, problem->group_size);
  }
  return attributes.has_zeros == 0 || has_sizes(inputs[kZeros], {vocabulary, groups}) ||
         fail(error, "%s: zeros must have the shape of the scales, [%lld, %lld]", name, Wide{vocabulary}, Wide{groups});
}

}  // namespace quantized_embedding
}  // namespace awq2trt
