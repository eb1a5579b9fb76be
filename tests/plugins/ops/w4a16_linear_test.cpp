// The rules of W4A16Linear tested with literal shapes and messages: which nodes are valid, and which problem they give.
#include "ops/w4a16_linear.h"

#include <climits>
#include <cstring>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace w4a16_linear {
namespace {

using Sizes = std::vector<int64_t>;

// Inputs of a node and what describe_problem() makes of them.
struct Node {
  Attributes attributes;
  std::vector<Sizes> inputs;
  ElementType x_type = ElementType::kFloat16;

  bool describe() {
    std::vector<Shape> shapes;
    for (const Sizes& sizes : inputs) shapes.push_back({sizes.data(), static_cast<int32_t>(sizes.size())});
    return describe_problem(attributes, shapes.data(), x_type, &problem, &error);
  }
  GemmProblem problem = {};
  ErrorText error = {};
};

// x [2, 3, 576], N = 64, G = 128: five groups, the last of 64 channels.
Node whole_node() { return {{128, 1, 1}, {{2, 3, 576}, {64, 576}, {64, 5}, {64, 5}, {64}}}; }

TEST(W4A16LinearOp, InputsFollowEachOtherWithoutGaps) {
  EXPECT_EQ(input_count({128, 0, 0}), 3);
  EXPECT_EQ(zeros_input({128, 0, 0}), kNoInput);
  EXPECT_EQ(bias_input({128, 0, 0}), kNoInput);
  EXPECT_EQ(input_count({128, 1, 0}), 4);
  EXPECT_EQ(zeros_input({128, 1, 0}), 3);
  EXPECT_EQ(input_count({128, 0, 1}), 4);
  EXPECT_EQ(bias_input({128, 0, 1}), 3);
  EXPECT_EQ(input_count({128, 1, 1}), kMaxInputs);
  EXPECT_EQ(zeros_input({128, 1, 1}), 3);
  EXPECT_EQ(bias_input({128, 1, 1}), 4);
}

TEST(W4A16LinearOp, EveryTensorHasARole) {
  using R = Role;
  const auto roles = [](Attributes attributes) {
    std::vector<Role> result;
    for (int32_t i = 0; i <= input_count(attributes); ++i) result.push_back(role_of(i, attributes));
    return result;
  };
  const R x = R::kActivations, int4 = R::kCodes, like_x = R::kLikeActivations;
  EXPECT_EQ(roles({128, 0, 0}), (std::vector<R>{x, int4, like_x, like_x}));
  EXPECT_EQ(roles({128, 1, 0}), (std::vector<R>{x, int4, like_x, int4, like_x}));
  EXPECT_EQ(roles({128, 0, 1}), (std::vector<R>{x, int4, like_x, like_x, like_x}));
  EXPECT_EQ(roles({128, 1, 1}), (std::vector<R>{x, int4, like_x, int4, like_x, like_x}));
}

TEST(W4A16LinearOp, AttributesAreAPositiveSizeAndTwoFlags) {
  ErrorText error = {};
  EXPECT_TRUE(check_attributes({1, 0, 1}, &error));
  EXPECT_FALSE(check_attributes({0, 0, 0}, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: attribute group_size must be at least 1, got 0");
  EXPECT_FALSE(check_attributes({128, 2, 0}, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: attribute has_zeros must be 0 or 1, got 2");
  EXPECT_FALSE(check_attributes({128, 1, -1}, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: attribute has_bias must be 0 or 1, got -1");
  EXPECT_TRUE(check_input_count({128, 1, 0}, 4, &error));
  EXPECT_FALSE(check_input_count({128, 1, 0}, 5, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: expected 4 inputs for has_zeros = 1 and has_bias = 0, got 5");
}

TEST(W4A16LinearOp, TypesAreThoseOfTheRoles) {
  const Attributes attributes = {128, 1, 1};
  ErrorText error = {};
  for (const ElementType x_type : {ElementType::kFloat16, ElementType::kBFloat16}) {
    const ElementType types[] = {x_type, ElementType::kInt4, x_type, ElementType::kInt4, x_type, x_type};
    for (int32_t i = 0; i < 6; ++i) EXPECT_TRUE(check_type(attributes, i, types[i], x_type, &error)) << i;
  }
  EXPECT_FALSE(check_type(attributes, 0, ElementType::kFloat32, ElementType::kFloat32, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: tensor 0 must be fp16 or bf16, got fp32");
  EXPECT_FALSE(check_type(attributes, 3, ElementType::kUint8, ElementType::kFloat16, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: tensor 3 must be int4, got uint8");
  EXPECT_FALSE(check_type(attributes, 5, ElementType::kBFloat16, ElementType::kFloat16, &error)) << "the output";
  EXPECT_STREQ(error.text, "W4A16Linear: tensor 5 must be fp16, got bf16");
  EXPECT_FALSE(check_type(attributes, 1, ElementType::kOther, ElementType::kFloat16, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: tensor 1 must be int4, got another type");
}

TEST(W4A16LinearOp, RanksDecideTheOutputsShape) {
  ErrorText error = {};
  EXPECT_TRUE(check_ranks({128, 0, 0}, 1, 2, &error));
  EXPECT_TRUE(check_ranks({128, 0, 0}, 4, 2, &error));
  EXPECT_FALSE(check_ranks({128, 0, 0}, 0, 2, &error));
  EXPECT_FALSE(check_ranks({128, 0, 0}, 3, 1, &error));
  EXPECT_STREQ(error.text, "W4A16Linear: expected X [..., K] and codes [N, K], got 3 and 1 dimensions");
}

TEST(W4A16LinearOp, DescribesTheProblem) {
  Node node = whole_node();
  ASSERT_TRUE(node.describe()) << node.error.text;
  EXPECT_EQ(node.problem.m, 6);
  EXPECT_EQ(node.problem.n, 64);
  EXPECT_EQ(node.problem.k, 576);
  EXPECT_EQ(node.problem.group_size, 128);
  EXPECT_EQ(node.problem.dtype, DataType::kHalf);
  EXPECT_TRUE(node.problem.has_zeros);
  EXPECT_TRUE(node.problem.has_bias);
  EXPECT_STREQ(node.error.text, "");

  Node plain = {{576, 0, 0}, {{576}, {64, 576}, {64, 1}}, ElementType::kBFloat16};
  ASSERT_TRUE(plain.describe()) << plain.error.text;
  EXPECT_EQ(plain.problem.m, 1);
  EXPECT_EQ(plain.problem.dtype, DataType::kBFloat16);
  EXPECT_FALSE(plain.problem.has_zeros);
  EXPECT_FALSE(plain.problem.has_bias);

  Node biased = {{128, 0, 1}, {{1, 576}, {64, 576}, {64, 5}, {64}}};
  EXPECT_TRUE(biased.describe()) << biased.error.text;
  Node empty = {{128, 0, 0}, {{4, 0, 576}, {64, 576}, {64, 5}}};
  ASSERT_TRUE(empty.describe()) << "no tokens: " << empty.error.text;
  EXPECT_EQ(empty.problem.m, 0);
}

TEST(W4A16LinearOp, SaysWhichShapesDoNotFit) {
  struct Case {
    int input;
    Sizes sizes;
    const char* message;
  };
  const Case cases[] = {
      {0, {}, "expected X [..., K], codes [N, K] and scales [N, groups], got 0, 2 and 2 dimensions"},
      {1, {64, 576, 1}, "got 3, 3 and 2 dimensions"},
      {0, {1, 512}, "the last dimension of X is 512, but the codes are for K = 576"},
      {0, {-1, 576}, "-1 tokens, N = 64, K = 576: negative, or beyond 2^31"},
      {0, {int64_t{1} << 31, 576}, "2147483648 tokens"},
      {0, {int64_t{1} << 62, 4, 576}, "4611686018427387904 tokens"},
      {1, {int64_t{1} << 31, 576}, "N = 2147483648"},
      {1, {0, 576}, "the number of output features N must be at least 1"},
      {2, {64, 4}, "expected scales [64, 5] for N = 64, K = 576, group_size = 128; got [64, 4]"},
      {2, {63, 5}, "got [63, 5]"},
      {3, {64, 4}, "zeros must have the shape of the scales, [64, 5]"},
      {3, {320}, "zeros must have the shape of the scales, [64, 5]"},
      {4, {63}, "the bias must have shape [64]"},
      {4, {1, 64}, "the bias must have shape [64]"},
  };
  for (const Case& c : cases) {
    Node node = whole_node();
    node.inputs[c.input] = c.sizes;
    EXPECT_FALSE(node.describe()) << c.message;
    EXPECT_NE(std::string(node.error.text).find(c.message), std::string::npos) << node.error.text;
    EXPECT_EQ(std::string(node.error.text).rfind("W4A16Linear", 0), 0u) << node.error.text;
  }
}

TEST(W4A16LinearOp, PassesOnWhyThereIsNoKernel) {
  Node node = {{4, 0, 0}, {{1, 12}, {8, 12}, {8, 3}}};
  EXPECT_FALSE(node.describe());
  EXPECT_STREQ(node.error.text,
               "W4A16Linear with N = 8, K = 12, group_size = 4: the number of input features K must be a positive "
               "multiple of 8");
}

TEST(ErrorText, LongMessagesAreCut) {
  ErrorText error = {};
  const std::string endless(2000, 'x');
  EXPECT_FALSE(fail(&error, "%s", endless.c_str()));
  EXPECT_EQ(std::strlen(error.text), sizeof(error.text) - 1);
}

}  // namespace
}  // namespace w4a16_linear
}  // namespace awq2trt
