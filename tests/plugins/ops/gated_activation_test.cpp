// The rules of GatedActivation tested with literal shapes and messages: which nodes are valid, and which problem they
// give.
#include "ops/gated_activation.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace gated_activation {
namespace {

// The problem of an input of these sizes, or the error.
std::string described(int32_t activation, const std::vector<int64_t>& sizes, ActivationProblem* problem) {
  ErrorText error = {};
  const Shape x = {sizes.data(), static_cast<int32_t>(sizes.size())};
  return describe_problem(activation, x, ElementType::kFloat16, problem, &error) ? "" : error.text;
}

TEST(GatedActivationOp, AttributeAndCountAreRefusedByName) {
  ErrorText error = {};
  for (const int32_t activation : {0, 1, 2, 3}) EXPECT_TRUE(check_activation(activation, &error));
  EXPECT_FALSE(check_activation(4, &error));
  EXPECT_STREQ(error.text, "GatedActivation: attribute activation must be 0 to 3, got 4");
  EXPECT_FALSE(check_activation(-1, &error));
  EXPECT_TRUE(check_input_count(1, &error));
  EXPECT_FALSE(check_input_count(2, &error));
  EXPECT_STREQ(error.text, "GatedActivation: expected 1 input, got 2");
  EXPECT_FALSE(check_type(1, ElementType::kFloat16, ElementType::kBFloat16, &error));
  EXPECT_STREQ(error.text, "GatedActivation: tensor 1 must be bf16, got fp16");
}

TEST(GatedActivationOp, HalvesAreCheckedBeforeSizesAreKnown) {
  ErrorText error = {};
  const int64_t unknown[] = {-1, -1}, odd[] = {-1, 7}, even[] = {-1, 8};
  EXPECT_TRUE(check_halves({unknown, 2}, &error));
  EXPECT_TRUE(check_halves({even, 2}, &error));
  EXPECT_FALSE(check_halves({odd, 2}, &error));
  EXPECT_STREQ(error.text, "GatedActivation: the last dimension of X must be even, got 7");
  EXPECT_FALSE(check_halves({nullptr, 0}, &error));
  EXPECT_STREQ(error.text, "GatedActivation: expected X [..., 2 I], got no dimensions");
}

TEST(GatedActivationOp, DescribesTheProblem) {
  ActivationProblem problem = {};
  ASSERT_EQ(described(2, {2, 3, 3072}, &problem), "");
  EXPECT_EQ(problem.rows, 6);
  EXPECT_EQ(problem.width, 1536);
  EXPECT_EQ(problem.activation, Activation::kGeluTanh);
  EXPECT_EQ(problem.dtype, DataType::kHalf);
  ASSERT_EQ(described(0, {16}, &problem), "");
  EXPECT_EQ(problem.rows, 1);
}

TEST(GatedActivationOp, ShapesWithoutAKernelAreRefused) {
  ActivationProblem problem = {};
  EXPECT_EQ(described(0, {-1, 64}, &problem), "GatedActivation: sizes of X are negative, or beyond 2^31");
  EXPECT_EQ(described(0, {3, 24}, &problem).find("GatedActivation with 3 rows, I = 12: "), 0u);
  EXPECT_EQ(described(0, {70000, 64}, &problem).find("GatedActivation with 70000 rows, I = 32: "), 0u);
}

}  // namespace
}  // namespace gated_activation
}  // namespace awq2trt
