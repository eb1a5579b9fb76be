// The rules of the embeddings by literal shapes and messages.
#include "ops/quantized_embedding.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace quantized_embedding {
namespace {

using Sizes = std::vector<int64_t>;

// Inputs of a node and what describe_problem() makes of them.
struct Node {
  Attributes attributes;
  std::vector<Sizes> inputs;

  bool describe() {
    std::vector<Shape> shapes;
    for (const Sizes& sizes : inputs) shapes.push_back({sizes.data(), static_cast<int32_t>(sizes.size())});
    return describe_problem(attributes, shapes.data(), ElementType::kFloat16, &problem, &error);
  }
  EmbeddingProblem problem = {};
  ErrorText error = {};
};

// 3 x 5 ids of a table of 64 rows of 576, G = 128: five groups, the last of 64.
Node whole_node() { return {{128, 1, 8}, {{64, 5}, {64, 576}, {3, 5}, {64, 5}}}; }

TEST(QuantizedEmbeddingOp, ItsNameTellsTheWidthOfCodes) {
  EXPECT_STREQ(name_of({128, 0, 4}), "W4A16Embedding");
  EXPECT_STREQ(name_of({128, 0, 8}), "W8A16Embedding");
}

TEST(QuantizedEmbeddingOp, EveryTensorHasItsType) {
  ErrorText error = {};
  const Attributes bytes = {128, 1, 8}, nibbles = {128, 0, 4};
  const auto half = ElementType::kFloat16;
  EXPECT_TRUE(check_type(bytes, kCodes, ElementType::kInt8, half, &error));
  EXPECT_TRUE(check_type(bytes, kZeros, ElementType::kInt8, half, &error));
  EXPECT_TRUE(check_type(bytes, kIds, ElementType::kInt64, half, &error));
  EXPECT_TRUE(check_type(bytes, 4, half, half, &error)) << "the output";
  EXPECT_TRUE(check_type(nibbles, kCodes, ElementType::kInt4, half, &error));
  EXPECT_TRUE(check_type(nibbles, 3, half, half, &error)) << "the output, where there are no zeros";
  EXPECT_FALSE(check_type(nibbles, kIds, ElementType::kInt32, half, &error));
  EXPECT_STREQ(error.text, "W4A16Embedding: tensor 2 must be int64, got int32");
}

TEST(QuantizedEmbeddingOp, AttributesAndInputsFitEachOther) {
  ErrorText error = {};
  EXPECT_FALSE(check_attributes({0, 0, 8}, &error));
  EXPECT_STREQ(error.text, "W8A16Embedding: attribute group_size must be at least 1, got 0");
  EXPECT_FALSE(check_attributes({8, 2, 8}, &error));
  EXPECT_TRUE(check_input_count({8, 0, 4}, 3, &error));
  EXPECT_TRUE(check_input_count({8, 1, 4}, 4, &error));
  EXPECT_FALSE(check_input_count({8, 1, 4}, 3, &error));
  EXPECT_STREQ(error.text, "W4A16Embedding: expected 4 inputs for has_zeros = 1, got 3");
}

TEST(QuantizedEmbeddingOp, TheProblemOfANode) {
  Node node = whole_node();
  ASSERT_TRUE(node.describe()) << node.error.text;
  EXPECT_EQ(node.problem.rows, 15);
  EXPECT_EQ(node.problem.vocabulary, 64);
  EXPECT_EQ(node.problem.width, 576);
  EXPECT_EQ(node.problem.groups(), 5);
  EXPECT_EQ(node.problem.code_bits, 8);
  EXPECT_EQ(node.problem.dtype, DataType::kHalf);
  EXPECT_TRUE(node.problem.has_zeros);
  node.inputs[kIds] = {};
  ASSERT_TRUE(node.describe()) << "one id is a number without dimensions";
  EXPECT_EQ(node.problem.rows, 1);
  node.inputs[kIds] = {1, 0};
  ASSERT_TRUE(node.describe());
  EXPECT_EQ(node.problem.rows, 0);
}

TEST(QuantizedEmbeddingOp, ShapesThatDoNotFitAreRefused) {
  const auto message = [](size_t input, Sizes sizes) {
    Node node = whole_node();
    node.inputs[input] = std::move(sizes);
    return node.describe() ? std::string() : std::string(node.error.text);
  };
  EXPECT_EQ(message(kScales, {64, 4}), "W8A16Embedding: expected scales [64, 5] for V = 64, K = 576, group_size = 128");
  EXPECT_EQ(message(kZeros, {5, 64}), "W8A16Embedding: zeros must have the shape of the scales, [64, 5]");
  EXPECT_EQ(message(kCodes, {64}), "W8A16Embedding: expected codes [V, K], got 1 dimensions");
  EXPECT_EQ(message(kCodes, {64, 12}),
            "W8A16Embedding with V = 64, K = 12, group_size = 128: rows must be a positive multiple of 8 wide");
  EXPECT_EQ(message(kIds, {1LL << 40}), "W8A16Embedding: 1099511627776 ids, V = 64, K = 576: negative, or beyond 2^31");
}

}  // namespace
}  // namespace quantized_embedding
}  // namespace awq2trt
