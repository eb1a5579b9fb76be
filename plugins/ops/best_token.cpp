// The rules of BestToken; see best_token.h.
#include "ops/best_token.h"

namespace awq2trt {
namespace best_token {

bool check_input_count(int32_t count, ErrorText* error) {
  return count == kInputs || fail(error, "%s: expected %d input, got %d", kName, kInputs, count);
}

bool check_rank(int32_t rank, ErrorText* error) {
  return rank >= 1 || fail(error, "%s: expected X [..., V], got no dimensions", kName);
}

bool describe_problem(const Shape& x, ElementType x_type, BestTokenProblem* problem, ErrorText* error) {
  if (!check_rank(x.rank, error)) return false;
  const int64_t rows = count_rows(x);
  if (rows < 0 || !fits_int(x.last())) return fail(error, "%s: sizes of X are negative, or beyond 2^31", kName);
  *problem = {static_cast<int>(rows), static_cast<int>(x.last()),
              x_type == ElementType::kFloat16 ? DataType::kHalf : DataType::kBFloat16};
  const char* const reason = check_validity(*problem);
  return reason == nullptr ||
         fail(error, "%s with %d rows, V = %d: %s", kName, problem->rows, problem->vocabulary, reason);
}

}  // namespace best_token
}  // namespace awq2trt
