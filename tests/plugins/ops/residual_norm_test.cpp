// The rules of ResidualNorm tested with literal shapes and messages: which nodes are valid, and which problem they
// give.
#include "ops/residual_norm.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace residual_norm {
namespace {

using Sizes = std::vector<int64_t>;

// The problem of inputs of these sizes, or the error.
std::string described(const Attributes& attributes, const std::vector<Sizes>& inputs, NormProblem* problem) {
  std::vector<Shape> shapes;
  for (const Sizes& sizes : inputs) shapes.push_back({sizes.data(), static_cast<int32_t>(sizes.size())});
  ErrorText error = {};
  return describe_problem(attributes, shapes.data(), ElementType::kBFloat16, problem, &error) ? "" : error.text;
}

constexpr Attributes kBoth = {1, 1, 0, 1e-5F};

TEST(ResidualNormOp, InputsFollowEachOtherWithoutGaps) {
  const Attributes neither = {0, 0, 1, 0.F}, residual = {1, 0, 1, 0.F}, bias = {0, 1, 0, 0.F};
  EXPECT_EQ(input_count(neither), 2);
  EXPECT_EQ(gain_input(neither), 1);
  EXPECT_EQ(residual_input(neither), kNoInput);
  EXPECT_EQ(bias_input(neither), kNoInput);
  EXPECT_EQ(output_count(neither), 1);
  EXPECT_EQ(residual_input(residual), 1);
  EXPECT_EQ(gain_input(residual), 2);
  EXPECT_EQ(output_count(residual), 2);
  EXPECT_EQ(bias_input(bias), 2);
  EXPECT_EQ(input_count(kBoth), kMaxInputs);
  EXPECT_EQ(bias_input(kBoth), 3);
}

TEST(ResidualNormOp, AttributesAndCountsAreRefusedByName) {
  ErrorText error = {};
  EXPECT_TRUE(check_attributes(kBoth, &error));
  EXPECT_FALSE(check_attributes({1, 1, 2, 1e-5F}, &error));
  EXPECT_STREQ(error.text, "ResidualNorm: attribute rms must be 0 or 1, got 2");
  EXPECT_FALSE(check_attributes({1, 1, 0, -1.F}, &error));
  EXPECT_STREQ(error.text, "ResidualNorm: attribute epsilon cannot be negative, got -1");
  EXPECT_FALSE(check_input_count(kBoth, 3, &error));
  EXPECT_STREQ(error.text, "ResidualNorm: expected 4 inputs for has_residual = 1 and has_bias = 1, got 3");
  EXPECT_TRUE(check_output_count(kBoth, 2, &error));
  EXPECT_FALSE(check_output_count(kBoth, 1, &error));
  EXPECT_STREQ(error.text, "ResidualNorm: expected 2 outputs for has_residual = 1, got 1");
  EXPECT_TRUE(check_type(3, ElementType::kFloat16, ElementType::kFloat16, &error));
  EXPECT_FALSE(check_type(3, ElementType::kFloat32, ElementType::kFloat16, &error));
  EXPECT_STREQ(error.text, "ResidualNorm: tensor 3 must be fp16, got fp32");
}

TEST(ResidualNormOp, DescribesTheProblem) {
  NormProblem problem = {};
  ASSERT_EQ(described(kBoth, {{2, 3, 576}, {2, 3, 576}, {576}, {576}}, &problem), "");
  EXPECT_EQ(problem.rows, 6);
  EXPECT_EQ(problem.width, 576);
  EXPECT_FLOAT_EQ(problem.eps, 1e-5F);
  EXPECT_FALSE(problem.rms);
  EXPECT_TRUE(problem.has_residual);
  EXPECT_TRUE(problem.has_bias);
  EXPECT_EQ(problem.dtype, DataType::kBFloat16);
  ASSERT_EQ(described({0, 0, 1, 1e-6F}, {{64}, {64}}, &problem), "");
  EXPECT_EQ(problem.rows, 1);
  EXPECT_TRUE(problem.rms);
}

TEST(ResidualNormOp, ShapesThatDoNotFitAreRefused) {
  NormProblem problem = {};
  EXPECT_EQ(described(kBoth, {{}, {}, {}, {}}, &problem), "ResidualNorm: expected X [..., H], got no dimensions");
  EXPECT_EQ(described(kBoth, {{-1, 64}, {-1, 64}, {64}, {64}}, &problem),
            "ResidualNorm: sizes of X are negative, or beyond 2^31");
  EXPECT_EQ(described(kBoth, {{3, 64}, {2, 64}, {64}, {64}}, &problem),
            "ResidualNorm: the residual must have the shape of X");
  EXPECT_EQ(described(kBoth, {{3, 64}, {3, 64}, {63}, {64}}, &problem), "ResidualNorm: the gain must have shape [64]");
  EXPECT_EQ(described(kBoth, {{3, 64}, {3, 64}, {64}, {1, 64}}, &problem),
            "ResidualNorm: the bias must have shape [64]");
  EXPECT_EQ(described(kBoth, {{3, 20}, {3, 20}, {20}, {20}}, &problem).find("ResidualNorm with 3 rows, H = 20: "), 0u);
  EXPECT_EQ(described({0, 1, 1, 1e-5F}, {{3, 64}, {64}, {64}}, &problem).find("ResidualNorm with 3 rows, H = 64: "), 0u)
      << "an RMS norm with a bias";
}

}  // namespace
}  // namespace residual_norm
}  // namespace awq2trt
