// The rules of BestToken by literal shapes and messages: what a node of it may be, and which problem it poses.
#include "ops/best_token.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace best_token {
namespace {

// The problem of an input of these sizes, or the error.
std::string described(const std::vector<int64_t>& sizes, BestTokenProblem* problem) {
  ErrorText error = {};
  const Shape x = {sizes.data(), static_cast<int32_t>(sizes.size())};
  return describe_problem(x, ElementType::kBFloat16, problem, &error) ? "" : error.text;
}

TEST(BestTokenOp, CountsAreRefusedByName) {
  ErrorText error = {};
  EXPECT_TRUE(check_input_count(1, &error));
  EXPECT_FALSE(check_input_count(2, &error));
  EXPECT_STREQ(error.text, "BestToken: expected 1 input, got 2");
}

TEST(BestTokenOp, DescribesTheProblem) {
  BestTokenProblem problem = {};
  ASSERT_EQ(described({2, 3, 32000}, &problem), "");
  EXPECT_EQ(problem.rows, 6);
  EXPECT_EQ(problem.vocabulary, 32000);
  EXPECT_EQ(problem.dtype, DataType::kBFloat16);
  ASSERT_EQ(described({7}, &problem), "");
  EXPECT_EQ(problem.rows, 1);
}

TEST(BestTokenOp, ShapesWithoutAKernelAreRefused) {
  BestTokenProblem problem = {};
  EXPECT_EQ(described({}, &problem), "BestToken: expected X [..., V], got no dimensions");
  EXPECT_EQ(described({-1, 64}, &problem), "BestToken: sizes of X are negative, or beyond 2^31");
  EXPECT_EQ(described({3, 0}, &problem), "BestToken with 3 rows, V = 0: there must be at least 1 score");
}

}  // namespace
}  // namespace best_token
}  // namespace awq2trt
