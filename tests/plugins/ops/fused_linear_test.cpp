// The rules of FusedLinear by literal shapes and messages: what a node of it may be, and which problem it poses.
#include "ops/fused_linear.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace fused_linear {
namespace {

using Sizes = std::vector<int64_t>;

// The problem of inputs of these sizes, or the error.
std::string described(const Attributes& attributes, const std::vector<Sizes>& inputs, FusedLinearProblem* problem) {
  std::vector<Shape> shapes;
  for (const Sizes& sizes : inputs) shapes.push_back({sizes.data(), static_cast<int32_t>(sizes.size())});
  ErrorText error = {};
  return describe_problem(attributes, shapes.data(), ElementType::kBFloat16, problem, &error) ? "" : error.text;
}

std::string refusal_of(const Attributes& attributes) {
  ErrorText error = {};
  return check_attributes(attributes, &error) ? "" : error.text;
}

// group_size, zeros, bias; norm, residual, norm bias, rms; activation, which, gated; addend; epsilon
constexpr Attributes kAll = {128, 1, 1, 1, 1, 1, 0, 1, 2, 1, 0, 1e-5F};
constexpr Attributes kNorm = {128, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1e-6F};
constexpr Attributes kGate = {64, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0.F};
constexpr Attributes kAddend = {128, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1e-5F};
constexpr Attributes kAddendAlone = {128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0.F};

TEST(FusedLinearOp, InputsFollowEachOtherWithoutGaps) {
  EXPECT_EQ(residual_input(kAll), 1);
  EXPECT_EQ(gain_input(kAll), 2);
  EXPECT_EQ(norm_bias_input(kAll), 3);
  EXPECT_EQ(codes_input(kAll), 4);
  EXPECT_EQ(scales_input(kAll), 5);
  EXPECT_EQ(zeros_input(kAll), 6);
  EXPECT_EQ(bias_input(kAll), 7);
  EXPECT_EQ(addend_input(kAll), kNoInput);
  EXPECT_EQ(input_count(kAll), 8);
  EXPECT_EQ(output_count(kAll), 2);
  EXPECT_EQ(first_constant(kAll), gain_input(kAll));
  EXPECT_EQ(end_of_constants(kAll), 8);

  EXPECT_EQ(bias_input(kAddend), 7);
  EXPECT_EQ(addend_input(kAddend), 8);
  EXPECT_EQ(input_count(kAddend), kMaxInputs);
  EXPECT_EQ(end_of_constants(kAddend), 8) << "an addend is computed";
  EXPECT_EQ(addend_input(kAddendAlone), 3);
  EXPECT_EQ(input_count(kAddendAlone), 4);

  EXPECT_EQ(residual_input(kNorm), kNoInput);
  EXPECT_EQ(gain_input(kNorm), 1);
  EXPECT_EQ(norm_bias_input(kNorm), kNoInput);
  EXPECT_EQ(codes_input(kNorm), 2);
  EXPECT_EQ(zeros_input(kNorm), kNoInput);
  EXPECT_EQ(bias_input(kNorm), kNoInput);
  EXPECT_EQ(input_count(kNorm), 4);
  EXPECT_EQ(output_count(kNorm), 1);

  EXPECT_EQ(gain_input(kGate), kNoInput);
  EXPECT_EQ(codes_input(kGate), 1);
  EXPECT_EQ(zeros_input(kGate), 3);
  EXPECT_EQ(input_count(kGate), 4);
  EXPECT_EQ(first_constant(kGate), codes_input(kGate));
  Attributes bare = kGate;
  bare.has_zeros = 0;
  EXPECT_EQ(input_count(bare), kMinInputs);
  bare.has_bias = 1;
  EXPECT_EQ(bias_input(bare), 3);
}

TEST(FusedLinearOp, AttributesAreRefusedByName) {
  for (const Attributes& good : {kAll, kNorm, kGate, kAddend, kAddendAlone}) EXPECT_EQ(refusal_of(good), "");
  Attributes a = kAll;
  a.has_zeros = 2;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute has_zeros must be 0 or 1, got 2");
  a = kAll;
  a.has_norm = -1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute has_norm must be 0 or 1, got -1");
  a = kAll;
  a.has_norm = a.has_activation = 0;
  EXPECT_EQ(refusal_of(a),
            "FusedLinear: attribute has_norm, has_activation or has_addend must be 1; a linear by itself is a "
            "W4A16Linear");
  a = kGate;
  a.has_residual = 1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute has_residual needs has_norm = 1");
  a = kGate;
  a.has_norm_bias = 1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute has_norm_bias needs has_norm = 1");
  a = kGate;
  a.rms = 1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute rms needs has_norm = 1");
  a = kGate;
  a.epsilon = 1e-5F;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute epsilon needs has_norm = 1");
  a = kNorm;
  a.activation = 1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute activation needs has_activation = 1");
  a = kNorm;
  a.gated = 1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute gated needs has_activation = 1");
  a = kAll;
  a.gated = 2;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute gated must be 0 or 1, got 2");
  a = kAll;
  a.has_addend = 1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attributes gated and has_addend cannot both be 1");
  a = kAddendAlone;
  a.has_addend = -1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: attribute has_addend must be 0 or 1, got -1");
  a = kAll;
  a.rms = 1;
  EXPECT_EQ(refusal_of(a), "FusedLinear: an RMS norm has no bias: has_norm_bias and rms cannot both be 1");
  a = kAll;
  a.activation = 4;
  EXPECT_EQ(refusal_of(a), "FusedLinear, part GatedActivation: attribute activation must be 0 to 3, got 4");
  a = kAll;
  a.group_size = 0;
  EXPECT_EQ(refusal_of(a), "FusedLinear, part W4A16Linear: attribute group_size must be at least 1, got 0");
  a = kAll;
  a.epsilon = -1.F;
  EXPECT_EQ(refusal_of(a), "FusedLinear, part ResidualNorm: attribute epsilon cannot be negative, got -1");
}

TEST(FusedLinearOp, CountsAndTypesAreRefused) {
  ErrorText error = {};
  EXPECT_TRUE(check_input_count(kAll, 8, &error));
  EXPECT_FALSE(check_input_count(kAll, 7, &error));
  EXPECT_STREQ(error.text,
               "FusedLinear: expected 8 inputs for has_norm = 1, has_residual = 1, has_norm_bias = 1, has_zeros = 1, "
               "has_bias = 1 and has_addend = 0, got 7");
  EXPECT_TRUE(check_output_count(kNorm, 1, &error));
  EXPECT_FALSE(check_output_count(kNorm, 2, &error));
  EXPECT_STREQ(error.text, "FusedLinear: expected 1 outputs for has_residual = 0, got 2");

  constexpr ElementType kHalf = ElementType::kFloat16;
  for (int32_t tensor = 0; tensor < 10; ++tensor) {  // the last two are outputs
    const bool is_code = tensor == 4 || tensor == 6;
    EXPECT_EQ(check_type(kAll, tensor, ElementType::kInt4, kHalf, &error), is_code) << tensor;
    EXPECT_EQ(check_type(kAll, tensor, kHalf, kHalf, &error), !is_code) << tensor;
    EXPECT_FALSE(check_type(kAll, tensor, ElementType::kFloat32, kHalf, &error)) << tensor;
  }
  EXPECT_TRUE(check_type(kAddend, 8, kHalf, kHalf, &error));
  EXPECT_FALSE(check_type(kAddend, 8, ElementType::kInt4, kHalf, &error));
  EXPECT_FALSE(check_type(kAll, 4, ElementType::kUint8, kHalf, &error));
  EXPECT_STREQ(error.text, "FusedLinear: tensor 4 must be int4, got uint8");
}

TEST(FusedLinearOp, ShapesOfOutputsFollowFromTheCodes) {
  const auto refusal = [](int32_t x_rank, const Sizes& codes) -> std::string {
    ErrorText error = {};
    const Shape shape = {codes.data(), static_cast<int32_t>(codes.size())};
    return check_shapes(kGate, x_rank, shape, &error) ? "" : error.text;
  };
  EXPECT_EQ(refusal(3, {-1, 64}), "");
  EXPECT_EQ(refusal(1, {32, 64}), "");
  EXPECT_EQ(refusal(0, {32, 64}),
            "FusedLinear, part W4A16Linear: expected X [..., K] and codes [N, K], got 0 and 2 dimensions");
  EXPECT_EQ(refusal(2, {33, 64}),
            "FusedLinear: with a gated activation, codes must have an even number of rows N, got 33");
  EXPECT_EQ(output_width(kGate, 32), 16);
  EXPECT_EQ(output_width(kNorm, 32), 32);
  EXPECT_EQ(output_width(kAddend, 32), 32);
}

TEST(FusedLinearOp, DescribesTheProblem) {
  FusedLinearProblem p = {};
  ASSERT_EQ(described(kAll, {{2, 3, 576}, {2, 3, 576}, {576}, {576}, {64, 576}, {64, 5}, {64, 5}, {64}}, &p), "");
  EXPECT_EQ(check_validity(p), nullptr);
  EXPECT_EQ(p.linear.m, 6);
  EXPECT_EQ(p.linear.n, 64);
  EXPECT_EQ(p.linear.k, 576);
  EXPECT_EQ(p.linear.group_size, 128);
  EXPECT_TRUE(p.linear.has_zeros);
  EXPECT_TRUE(p.linear.has_bias);
  EXPECT_EQ(p.linear.dtype, DataType::kBFloat16);
  ASSERT_TRUE(p.has_norm);
  EXPECT_FALSE(p.norm.rms);
  EXPECT_TRUE(p.norm.has_residual);
  EXPECT_TRUE(p.norm.has_bias);
  EXPECT_FLOAT_EQ(p.norm.eps, 1e-5F);
  ASSERT_TRUE(p.has_activation);
  EXPECT_EQ(p.activation.width, 32);
  EXPECT_EQ(p.activation.activation, Activation::kGeluTanh);
  EXPECT_TRUE(p.gated);
  EXPECT_FALSE(p.has_addend);

  ASSERT_EQ(
      described(kAddend, {{2, 3, 576}, {2, 3, 576}, {576}, {576}, {56, 576}, {56, 5}, {56, 5}, {56}, {2, 3, 56}}, &p),
      "");
  EXPECT_EQ(check_validity(p), nullptr);
  ASSERT_TRUE(p.has_activation);
  EXPECT_FALSE(p.gated);
  EXPECT_EQ(p.activation.rows, 6);
  EXPECT_EQ(p.activation.width, 56);
  EXPECT_EQ(p.activation.activation, Activation::kGelu);
  EXPECT_EQ(p.activation.dtype, DataType::kBFloat16);
  EXPECT_TRUE(p.has_addend);
  ASSERT_EQ(described(kAddendAlone, {{256}, {48, 256}, {48, 2}, {48}}, &p), "");
  EXPECT_FALSE(p.has_norm);
  EXPECT_FALSE(p.has_activation);
  EXPECT_TRUE(p.has_addend);

  ASSERT_EQ(described(kNorm, {{4, 256}, {256}, {33, 256}, {33, 2}}, &p), "");
  EXPECT_FALSE(p.has_activation);
  EXPECT_TRUE(p.norm.rms);
  EXPECT_EQ(p.linear.n, 33);
  ASSERT_EQ(described(kGate, {{256}, {48, 256}, {48, 4}, {48, 4}}, &p), "");
  EXPECT_FALSE(p.has_norm);
  EXPECT_EQ(p.linear.m, 1);
}

TEST(FusedLinearOp, ShapesThatDoNotFitAreRefusedByPart) {
  FusedLinearProblem p = {};
  EXPECT_EQ(described(kNorm, {{4, 256}, {128}, {33, 256}, {33, 2}}, &p),
            "FusedLinear, part ResidualNorm: the gain must have shape [256]");
  EXPECT_EQ(described(kAll, {{4, 256}, {3, 256}, {256}, {256}, {64, 256}, {64, 2}, {64, 2}, {64}}, &p),
            "FusedLinear, part ResidualNorm: the residual must have the shape of X");
  EXPECT_EQ(described(kNorm, {{4, 128}, {128}, {33, 256}, {33, 2}}, &p),
            "FusedLinear, part W4A16Linear: the last dimension of X is 128, but the codes are for K = 256");
  EXPECT_EQ(described(kGate, {{4, 256}, {48, 256}, {48, 4}, {48, 3}}, &p),
            "FusedLinear, part W4A16Linear: zeros must have the shape of the scales, [48, 4]");
  EXPECT_EQ(described(kGate, {{4, 256}, {40, 256}, {40, 4}, {40, 4}}, &p),
            "FusedLinear, part GatedActivation with 4 rows, I = 20: the width must be a multiple of 8");
  EXPECT_EQ(described(kGate, {{4, 256}, {41, 256}, {41, 4}, {41, 4}}, &p),
            "FusedLinear, part GatedActivation: the last dimension of X must be even, got 41");
  Attributes plain = kGate;
  plain.gated = 0;
  EXPECT_EQ(described(plain, {{4, 256}, {41, 256}, {41, 4}, {41, 4}}, &p),
            "FusedLinear, activation of 4 rows, N = 41: the width must be a multiple of 8");
  for (const Sizes& addend : {Sizes{4, 40}, Sizes{3, 48}, Sizes{48}, Sizes{1, 4, 48}}) {
    EXPECT_EQ(described(kAddendAlone, {{4, 256}, {48, 256}, {48, 2}, addend}, &p),
              "FusedLinear: the addend must have the shape of y, that of X with N = 48 in the last place");
  }
  EXPECT_EQ(described(kAddendAlone, {{4, 256}, {41, 256}, {41, 2}, {4, 41}}, &p),
            "FusedLinear with N = 41: the width of an addend must be a multiple of 8");
  EXPECT_EQ(described(kNorm, {{4, 32768}, {32768}, {33, 32768}, {33, 256}}, &p),
            "FusedLinear, part ResidualNorm with 4 rows, H = 32768: the width must be at most 16384");
}

}  // namespace
}  // namespace fused_linear
}  // namespace awq2trt
