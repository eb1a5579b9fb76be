// The rules of CachedAttention tested with literal shapes and messages: which nodes are valid, and which problem they
// give.
#include "ops/cached_attention.h"

#include <climits>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace cached_attention {
namespace {

using Sizes = std::vector<int64_t>;

// Inputs of a node and what describe_problem() makes of them.
struct Node {
  Attributes attributes;
  std::vector<Sizes> inputs;
  ElementType type = ElementType::kFloat16;

  bool describe() {
    std::vector<Shape> shapes;
    for (const Sizes& sizes : inputs) shapes.push_back({sizes.data(), static_cast<int32_t>(sizes.size())});
    return describe_problem(attributes, shapes.data(), type, &problem, &error);
  }
  AttentionProblem problem = {};
  ErrorText error = {};
};

constexpr Attributes kPlain = {8, 2, 0, 0, 0, 0, 0, 0.125F, 0.F, 0.F, 0.F, 0};
constexpr Attributes kEverything = {8, 2, 64, 1, 33, 1, 1, 0.125F, 30.F, 6.F, 1e-6F, 0};

// The same with a cache of codes, whose scales come last.
constexpr Attributes with_scales(Attributes attributes) {
  attributes.has_cache_scales = 1;
  return attributes;
}

// The same where tokens see what is behind them, whose ends come before scales.
constexpr Attributes with_ends(Attributes attributes) {
  attributes.has_visible_end = 1;
  return attributes;
}

// B = 2, S = 3, C = 100, D = 128: 12 heads of 128 channels.
Node whole_node() {
  return {kEverything,
          {{2, 3, 1536}, {2}, {2, 2, 100, 128}, {2, 2, 100, 128}, {120, 32}, {120, 32}, {128}, {128}, {8}}};
}

TEST(CachedAttentionOp, InputsFollowEachOtherWithoutGaps) {
  Attributes a = kPlain;
  EXPECT_EQ(input_count(a), 4);
  EXPECT_EQ(cos_input(a), kNoInput);
  EXPECT_EQ(query_norm_input(a), kNoInput);
  EXPECT_EQ(alibi_input(a), kNoInput);
  a.has_norms = 1;
  EXPECT_EQ(input_count(a), 6);
  EXPECT_EQ(query_norm_input(a), 4);
  a.has_alibi = 1;
  EXPECT_EQ(alibi_input(a), 6);
  a.rotary_dim = 64;
  EXPECT_EQ(input_count(a), 9);
  EXPECT_EQ(cache_scale_input(a), kNoInput);
  for (const Attributes& each : {a, with_scales(a)}) {
    EXPECT_EQ(cos_input(each), 4);
    EXPECT_EQ(query_norm_input(each), 6);
    EXPECT_EQ(alibi_input(each), 8);
  }
  EXPECT_EQ(input_count(with_scales(a)), 11);
  EXPECT_EQ(cache_scale_input(with_scales(a)), 9);
  EXPECT_EQ(visible_end_input(with_scales(a)), kNoInput);
  EXPECT_EQ(visible_end_input(with_ends(kPlain)), 4);
  EXPECT_EQ(visible_end_input(with_ends(a)), 9);
  EXPECT_EQ(visible_end_input(with_scales(with_ends(a))), 9);
  EXPECT_EQ(cache_scale_input(with_scales(with_ends(a))), 10);
  EXPECT_EQ(input_count(with_scales(with_ends(a))), kMaxInputs);
  EXPECT_EQ(cache_scale_input(with_scales(kPlain)), 4);
}

TEST(CachedAttentionOp, EveryPresentHasAPast) {
  EXPECT_EQ(output_count(kPlain), 3);
  EXPECT_EQ(past_of(kPlain, kY), kNoInput);
  EXPECT_EQ(past_of(kPlain, kPresentKey), kPastKey);
  EXPECT_EQ(past_of(kPlain, kPresentValue), kPastValue);
  const Attributes scaled = with_scales(kEverything);
  EXPECT_EQ(output_count(scaled), kMaxOutputs);
  EXPECT_EQ(past_of(scaled, kPresentValue), kPastValue);
  EXPECT_EQ(past_of(scaled, kPresentKeyScale), 9);
  EXPECT_EQ(past_of(scaled, kPresentValueScale), 10);
}

TEST(CachedAttentionOp, AttributesAreRefusedByName) {
  const auto refused = [](const std::function<void(Attributes*)>& change) {
    Attributes attributes = kEverything;
    change(&attributes);
    ErrorText error = {};
    return check_attributes(attributes, &error) ? std::string("taken") : std::string(error.text);
  };
  EXPECT_EQ(refused([](Attributes*) {}), "taken");
  EXPECT_EQ(refused([](Attributes* a) { a->num_heads = 0; }),
            "CachedAttention: attribute num_heads must be at least 1, got 0");
  EXPECT_EQ(refused([](Attributes* a) { a->num_kv_heads = 3; }),
            "CachedAttention: num_heads = 8 must be a multiple of num_kv_heads = 3");
  EXPECT_EQ(refused([](Attributes* a) { a->rotary_dim = -2; }),
            "CachedAttention: attribute rotary_dim must be at least 0, got -2");
  EXPECT_EQ(refused([](Attributes* a) { a->window = -1; }),
            "CachedAttention: attribute window must be at least 0, got -1");
  EXPECT_EQ(refused([](Attributes* a) { a->interleaved = 2; }),
            "CachedAttention: attribute interleaved must be 0 or 1, got 2");
  EXPECT_EQ(refused([](Attributes* a) { a->has_cache_scales = 2; }),
            "CachedAttention: attribute has_cache_scales must be 0 or 1, got 2");
  EXPECT_EQ(refused([](Attributes* a) { a->has_visible_end = -1; }),
            "CachedAttention: attribute has_visible_end must be 0 or 1, got -1");
  EXPECT_EQ(refused([](Attributes* a) { a->clip = -1.F; }),
            "CachedAttention: attribute clip cannot be negative, got -1");
  EXPECT_EQ(refused([](Attributes* a) { a->scale = -1.F; }), "taken") << "a factor may have any sign";
}

TEST(CachedAttentionOp, CountsOfInputsAreThoseOfTheAttributes) {
  ErrorText error = {};
  EXPECT_TRUE(check_input_count(kEverything, 9, &error));
  EXPECT_FALSE(check_input_count(kPlain, 9, &error));
  EXPECT_STREQ(error.text,
               "CachedAttention: expected 4 inputs for rotary_dim = 0, has_norms = 0, has_alibi = 0, "
               "has_visible_end = 0 and has_cache_scales = 0, got 9");
  EXPECT_TRUE(check_input_count(with_ends(kPlain), 5, &error));
  EXPECT_FALSE(check_input_count(with_ends(kPlain), 4, &error));
  EXPECT_TRUE(check_input_count(with_scales(kEverything), 11, &error));
  EXPECT_FALSE(check_input_count(with_scales(kEverything), 9, &error));
}

TEST(CachedAttentionOp, PositionsAreInt64SlopesFp32AndTheRestOfOneType) {
  ErrorText error = {};
  for (int32_t tensor = 0; tensor < input_count(kEverything) + output_count(kEverything); ++tensor) {
    const ElementType expected = tensor == kPosition ? ElementType::kInt64
                                 : tensor == 8       ? ElementType::kFloat32
                                                     : ElementType::kBFloat16;
    for (const ElementType type : {ElementType::kInt64, ElementType::kFloat32, ElementType::kBFloat16}) {
      EXPECT_EQ(check_type(kEverything, tensor, type, ElementType::kBFloat16, &error), type == expected) << tensor;
    }
  }
  EXPECT_FALSE(check_type(kPlain, kPosition, ElementType::kInt32, ElementType::kFloat16, &error));
  EXPECT_STREQ(error.text, "CachedAttention: tensor 1 must be int64, got int32");
}

TEST(CachedAttentionOp, EndsAreInt64) {
  ErrorText error = {};
  for (const Attributes& attributes : {with_ends(kPlain), with_scales(with_ends(kPlain))}) {
    EXPECT_TRUE(check_type(attributes, 4, ElementType::kInt64, ElementType::kFloat16, &error)) << error.text;
    EXPECT_FALSE(check_type(attributes, 4, ElementType::kInt32, ElementType::kFloat16, &error));
    EXPECT_STREQ(error.text, "CachedAttention: tensor 4 must be int64, got int32");
  }
}

TEST(CachedAttentionOp, DescribesEndsOfOneForEachSlot) {
  Node node = {with_ends(kPlain), {{1, 3, 12 * 64}, {1}, {1, 2, 10, 64}, {1, 2, 10, 64}, {10}}};
  ASSERT_TRUE(node.describe()) << node.error.text;
  EXPECT_TRUE(node.problem.has_visible_end);
  for (const Sizes& sizes : {Sizes{1, 10}, Sizes{9}}) {
    node.inputs[4] = sizes;
    EXPECT_FALSE(node.describe());
    EXPECT_STREQ(node.error.text, "CachedAttention: visible_end must have shape [at least 10]");
  }
  node.inputs[4] = {12};
  EXPECT_TRUE(node.describe());
  node.attributes.softcap = 30.F;
  EXPECT_FALSE(node.describe());
  EXPECT_STREQ(node.error.text,
               "CachedAttention with B = 1, S = 3, C = 10, D = 64: with ends of what tokens see there are neither "
               "slopes nor a softcap");
  node.attributes = kPlain;
  node.inputs.pop_back();
  ASSERT_TRUE(node.describe());
  EXPECT_FALSE(node.problem.has_visible_end);
}

TEST(CachedAttentionOp, KeysAndValuesThatHaveScalesAreInt8) {
  const Attributes attributes = with_scales(kEverything);
  ErrorText error = {};
  const int32_t outputs = input_count(attributes);
  for (int32_t tensor = 0; tensor < outputs + kMaxOutputs; ++tensor) {
    const bool codes = tensor == kPastKey || tensor == kPastValue || tensor == outputs + kPresentKey ||
                       tensor == outputs + kPresentValue;
    EXPECT_EQ(check_type(attributes, tensor, ElementType::kInt8, ElementType::kFloat16, &error), codes) << tensor;
    const bool halves = !codes && tensor != kPosition && tensor != 8;
    EXPECT_EQ(check_type(attributes, tensor, ElementType::kFloat16, ElementType::kFloat16, &error), halves) << tensor;
  }
  EXPECT_FALSE(check_type(kEverything, kPastKey, ElementType::kInt8, ElementType::kFloat16, &error));
  EXPECT_STREQ(error.text, "CachedAttention: tensor 2 must be fp16, got int8");
}

TEST(CachedAttentionOp, DescribesACacheOfCodes) {
  Node node = whole_node();
  ASSERT_TRUE(node.describe());
  EXPECT_EQ(node.problem.cache_type, CacheType::kAsActivations);
  node.attributes = with_scales(node.attributes);
  node.inputs.insert(node.inputs.end(), 2, {2, 2, 100});
  ASSERT_TRUE(node.describe()) << node.error.text;
  EXPECT_EQ(node.problem.cache_type, CacheType::kInt8);
  node.inputs.back() = {2, 2, 99};
  EXPECT_FALSE(node.describe());
  EXPECT_STREQ(node.error.text, "CachedAttention: past_key_scale and past_value_scale must have shape [2, 2, 100]");
}

TEST(CachedAttentionOp, DescribesTheProblem) {
  Node node = whole_node();
  ASSERT_TRUE(node.describe()) << node.error.text;
  const AttentionProblem& p = node.problem;
  EXPECT_EQ(p.batch, 2);
  EXPECT_EQ(p.tokens, 3);
  EXPECT_EQ(p.heads, 8);
  EXPECT_EQ(p.kv_heads, 2);
  EXPECT_EQ(p.head_dim, 128);
  EXPECT_EQ(p.capacity, 100);
  EXPECT_EQ(p.rotary_dim, 64);
  EXPECT_EQ(p.window, 33);
  EXPECT_FLOAT_EQ(p.scale, 0.125F);
  EXPECT_FLOAT_EQ(p.softcap, 30.F);
  EXPECT_FLOAT_EQ(p.clip, 6.F);
  EXPECT_FLOAT_EQ(p.norm_eps, 1e-6F);
  EXPECT_TRUE(p.has_norms);
  EXPECT_TRUE(p.interleaved);
  EXPECT_TRUE(p.has_alibi);
  EXPECT_EQ(p.dtype, DataType::kHalf);
  node.type = ElementType::kBFloat16;
  ASSERT_TRUE(node.describe());
  EXPECT_EQ(node.problem.dtype, DataType::kBFloat16);
}

TEST(CachedAttentionOp, ShapesThatDoNotFitAreRefused) {
  const auto refused = [](int32_t input, Sizes sizes) {
    Node node = whole_node();
    node.inputs[input] = std::move(sizes);
    return node.describe() ? std::string("taken") : std::string(node.error.text);
  };
  EXPECT_EQ(refused(0, {3, 1536}),
            "CachedAttention: expected QKV [B, S, (Hq + 2 Hkv) D] and past_key [B, Hkv, C, D], got 2 and 4 dimensions");
  EXPECT_EQ(refused(0, {2, 3, 1535}),
            "CachedAttention: the last dimension of QKV is 1535, but 12 heads of 128 channels are 1536");
  EXPECT_EQ(refused(0, {2, INT_MAX + int64_t{1}, 1536}),
            "CachedAttention: B = 2, S = 2147483648, C = 100, D = 128: negative, or beyond 2^31");
  EXPECT_EQ(refused(1, {3}), "CachedAttention: cache_position must have shape [2]");
  EXPECT_EQ(refused(3, {2, 2, 99, 128}), "CachedAttention: past_key and past_value must have shape [2, 2, 100, 128]");
  EXPECT_EQ(refused(4, {99, 32}), "CachedAttention: cosines and sines must have shape [at least 100, 32]");
  EXPECT_EQ(refused(5, {120, 31}), "CachedAttention: cosines and sines must have shape [at least 100, 32]");
  EXPECT_EQ(refused(7, {64}), "CachedAttention: gains of norms must have shape [128]");
  EXPECT_EQ(refused(8, {2}), "CachedAttention: slopes must have shape [8]");
  EXPECT_EQ(refused(0, {70000, 3, 1536}),
            "CachedAttention with B = 70000, S = 3, C = 100, D = 128: batch and tokens must be at most 65535");
}

TEST(CachedAttentionOp, HeadsWithoutAKernelAreRefused) {
  Node node = {kPlain, {{1, 1, 12 * 72}, {1}, {1, 2, 10, 72}, {1, 2, 10, 72}}};
  EXPECT_FALSE(node.describe());
  EXPECT_STREQ(
      node.error.text,
      "CachedAttention with B = 1, S = 1, C = 10, D = 72: head sizes with kernels are 64, 80, 96, 112, 128 and "
      "256");
}

}  // namespace
}  // namespace cached_attention
}  // namespace awq2trt
