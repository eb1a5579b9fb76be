// W8A16Linear and the embeddings as TensorRT sees them. On a GPU against their definitions, in fp64.
#include "trt/plugin_test.h"

namespace awq2trt {
namespace {

constexpr int64_t kRows = 40, kWidth = 80, kGroupSize = 32, kGroups = 3;

Fields linear_fields() {
  Fields fields;
  fields.integer("group_size", kGroupSize).integer("has_zeros", 1).integer("has_bias", 0);
  return fields;
}

Fields embedding_fields() {
  Fields fields;
  fields.integer("group_size", kGroupSize).integer("has_zeros", 1);
  return fields;
}

Node linear_node(int64_t max_tokens, TrtType type = TrtType::kHALF) {
  return {{tensor(type, dims({1, -1, kWidth}), dims({1, max_tokens, kWidth})), tensor(TrtType::kINT8, {kRows, kWidth}),
           tensor(type, {kRows, kGroups}), tensor(TrtType::kINT8, {kRows, kGroups}),
           tensor(type, dims({1, -1, kRows}), dims({1, max_tokens, kRows}))}};
}

Node embedding_node(TrtType codes, int64_t max_tokens, TrtType type = TrtType::kHALF) {
  return {{tensor(type, {kRows, kGroups}), tensor(codes, {kRows, kWidth}),
           tensor(TrtType::kINT64, dims({1, -1}), dims({1, max_tokens})), tensor(codes, {kRows, kGroups}),
           tensor(type, dims({1, -1, kWidth}), dims({1, max_tokens, kWidth}))}};
}

class CodedPluginsTest : public PluginTest {};

TEST_F(CodedPluginsTest, ALinearOfBytesTakesBytes) {
  const auto plugin = create_plugin("W8A16Linear", linear_fields());
  EXPECT_TRUE(supports_all(*plugin, linear_node(8, TrtType::kBF16)));
  EXPECT_EQ(configure(*plugin, linear_node(512)), 0);
  EXPECT_EQ(workspace_bytes(*plugin, linear_node(512)), 0u);
  Node node = linear_node(8);
  node.tensors[1].desc.type = TrtType::kINT4;
  EXPECT_FALSE(supports_all(*plugin, node));
  EXPECT_NE(recorder().details.find("W8A16Linear: tensor 1 must be int8, got int4"), std::string::npos)
      << recorder().details;
  const auto nibbles = create_plugin("W4A16Linear", linear_fields());
  EXPECT_FALSE(supports_all(*nibbles, linear_node(8)));
}

TEST_F(CodedPluginsTest, AnEmbeddingAddsAnAxis) {
  for (const char* const name : {"W4A16Embedding", "W8A16Embedding"}) {
    const auto plugin = create_plugin(name, embedding_fields());
    Expressions e;
    const DimsExprs inputs[] = {
        expressions_of({e.number(kRows), e.number(kGroups)}), expressions_of({e.number(kRows), e.number(kWidth)}),
        expressions_of({e.symbol("B"), e.symbol("S")}), expressions_of({e.number(kRows), e.number(kGroups)})};
    DimsExprs output = {};
    ASSERT_EQ(build_of(*plugin)->getOutputShapes(inputs, 4, nullptr, 0, &output, 1, e), 0);
    EXPECT_EQ(texts(output), (std::vector<std::string>{"B", "S", "80"}));
    const TrtType types[] = {TrtType::kBF16, TrtType::kINT8, TrtType::kINT64, TrtType::kINT8};
    TrtType type = TrtType::kFLOAT;
    ASSERT_EQ(build_of(*plugin)->getOutputDataTypes(&type, 1, types, 4), 0);
    EXPECT_EQ(type, TrtType::kBF16) << "that of the scales";
  }
}

TEST_F(CodedPluginsTest, AnEmbeddingTakesCodesOfItsWidth) {
  const auto nibbles = create_plugin("W4A16Embedding", embedding_fields());
  const auto bytes = create_plugin("W8A16Embedding", embedding_fields());
  EXPECT_TRUE(supports_all(*nibbles, embedding_node(TrtType::kINT4, 8)));
  EXPECT_TRUE(supports_all(*bytes, embedding_node(TrtType::kINT8, 8, TrtType::kBF16)));
  EXPECT_FALSE(supports_all(*nibbles, embedding_node(TrtType::kINT8, 8)));
  EXPECT_FALSE(supports_all(*bytes, embedding_node(TrtType::kINT8, 8, TrtType::kFLOAT)));
  EXPECT_EQ(configure(*bytes, embedding_node(TrtType::kINT8, 4096)), 0);
}

TEST_F(CodedPluginsTest, SerializeTheirFields) {
  const Fields linear = linear_fields(), embedding = embedding_fields();
  expect_serialized(*create_plugin("W8A16Linear", linear), "W8A16Linear", linear);
  expect_serialized(*create_plugin("W4A16Embedding", embedding), "W4A16Embedding", embedding);
  expect_serialized(*create_plugin("W8A16Embedding", embedding), "W8A16Embedding", embedding);
}

// --- With a GPU ---

class CodedPluginsGpuTest : public PluginGpuTest {
 protected:
  void SetUp() override {
    PluginGpuTest::SetUp();
    std::mt19937 random(test_seed());
    codes_.resize(kRows * kWidth), zeros_.resize(kRows * kGroups);
    for (int8_t& code : codes_) code = static_cast<int8_t>(random());
    for (int8_t& zero : zeros_) zero = static_cast<int8_t>(random());
    scales_ = random_normal<__half>(kRows * kGroups, 0.01f, 0.002f, random);
    x_ = random_normal<__half>(3 * kWidth, 0.f, 1.f, random);
  }
  double weight(int64_t row, int64_t k) const {
    const int64_t group = row * kGroups + k / kGroupSize;
    return static_cast<double>(static_cast<float>(scales_[group])) * (codes_[row * kWidth + k] - zeros_[group]);
  }

  std::vector<int8_t> codes_, zeros_;
  std::vector<__half> scales_, x_;
};

TEST_F(CodedPluginsGpuTest, ALinearOfBytes) {
  std::vector<double> want(3 * kRows);
  for (int64_t i = 0; i < 3 * kRows; ++i) {
    for (int64_t k = 0; k < kWidth; ++k) {
      want[i] += static_cast<float>(x_[i / kRows * kWidth + k]) * weight(i % kRows, k);
    }
  }
  const DeviceArray<int8_t> codes(codes_), zeros(zeros_);
  const DeviceArray<__half> scales(scales_), x(x_), y(3 * kRows);
  EnginePlugin plugin("W8A16Linear", linear_fields(), linear_node(3));
  for (const bool in_graph : {false, true}) {
    ASSERT_CUDA(cudaMemset(y.get(), 0xff, 3 * kRows * sizeof(__half)));
    const std::vector<const void*> inputs = {x.get(), codes.get(), scales.get(), zeros.get()};
    in_graph ? plugin.run_in_graph(inputs, {y.get()}) : plugin.run(inputs, {y.get()});
    EXPECT_LT(relative_error(widened(y.host()), want), TrtTypeOf<__half>::tolerance);
  }
}

TEST_F(CodedPluginsGpuTest, AnEmbeddingOfBytes) {
  const std::vector<int64_t> all = {kRows - 1, 0, 7};
  std::vector<double> want(3 * kWidth);
  for (int64_t i = 0; i < 3 * kWidth; ++i) want[i] = weight(all[i / kWidth], i % kWidth);
  const DeviceArray<int8_t> codes(codes_), zeros(zeros_);
  const DeviceArray<__half> scales(scales_), y(3 * kWidth);
  const DeviceArray<int64_t> ids(all);
  EnginePlugin plugin("W8A16Embedding", embedding_fields(), embedding_node(TrtType::kINT8, 3));
  ASSERT_CUDA(cudaMemset(y.get(), 0xff, 3 * kWidth * sizeof(__half)));
  plugin.run_in_graph({scales.get(), codes.get(), ids.get(), zeros.get()}, {y.get()});
  EXPECT_LT(relative_error(widened(y.host()), want), TrtTypeOf<__half>::tolerance);
}

}  // namespace
}  // namespace awq2trt
