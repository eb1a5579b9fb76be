// ResidualNorm as TensorRT sees it. On a GPU against its definition, in fp64.
#include <cmath>

#include "trt/plugin_test.h"

namespace awq2trt {
namespace {

constexpr char kName[] = "ResidualNorm";

struct Attributes {
  int32_t has_residual, has_bias, rms;
  float epsilon = 1e-5f;
};

Fields fields_of(const Attributes& a) {
  Fields fields;
  fields.integer("has_residual", a.has_residual).integer("has_bias", a.has_bias).integer("rms", a.rms);
  fields.number("epsilon", a.epsilon);
  return fields;
}

Node node_of(const Attributes& a, int64_t max_tokens, int64_t width, TrtType type = TrtType::kHALF) {
  const DynamicPluginTensorDesc stream = tensor(type, dims({1, -1, width}), dims({1, max_tokens, width}));
  Node node;
  node.tensors.push_back(stream);
  if (a.has_residual) node.tensors.push_back(stream);
  for (int i = 0; i < 1 + a.has_bias; ++i) node.tensors.push_back(tensor(type, {width}));
  node.outputs = 1 + a.has_residual;
  for (int i = 0; i < node.outputs; ++i) node.tensors.push_back(stream);
  return node;
}

class ResidualNormPluginTest : public PluginTest {};

TEST_F(ResidualNormPluginTest, CreatorNamesTheOpAndItsAttributes) {
  nvinfer1::IPluginCreatorV3One* const creator = Library::get().creator(kName);
  EXPECT_STREQ(creator->getPluginVersion(), "1");
  EXPECT_STREQ(creator->getPluginNamespace(), "awq2trt");
  const Fields all = fields_of({0, 0, 0});
  const PluginFieldCollection &names = *creator->getFieldNames(), expected = all.collection();
  ASSERT_EQ(names.nbFields, 4);
  for (int32_t i = 0; i < 4; ++i) {
    EXPECT_STREQ(names.fields[i].name, expected.fields[i].name);
    EXPECT_EQ(names.fields[i].type, expected.fields[i].type);
  }
}

TEST_F(ResidualNormPluginTest, RefusesBadAttributesWithTheReason) {
  EXPECT_EQ(create_plugin(kName, fields_of({2, 0, 1})), nullptr);
  EXPECT_NE(recorder().errors.find("has_residual must be 0 or 1, got 2"), std::string::npos) << recorder().errors;
  EXPECT_EQ(create_plugin(kName, fields_of({1, 0, 1, -1.f})), nullptr);
  EXPECT_NE(recorder().errors.find("epsilon cannot be negative"), std::string::npos) << recorder().errors;
  Fields incomplete;
  incomplete.integer("has_residual", 1).integer("has_bias", 0).integer("rms", 1);
  EXPECT_EQ(create_plugin(kName, incomplete), nullptr);
  EXPECT_NE(recorder().errors.find("epsilon is missing"), std::string::npos) << recorder().errors;
  EXPECT_EQ(create_plugin(kName, incomplete.integer("epsilon", 0)), nullptr);
  EXPECT_NE(recorder().errors.find("epsilon is no 32-bit float"), std::string::npos) << recorder().errors;
}

TEST_F(ResidualNormPluginTest, OutputsHaveTheShapeAndTypeOfX) {
  const auto plugin = create_plugin(kName, fields_of({1, 0, 1}));
  ASSERT_EQ(build_of(*plugin)->getNbOutputs(), 2);
  Expressions e;
  const DimsExprs x = expressions_of({e.symbol("B"), e.symbol("S"), e.symbol("H")});
  const DimsExprs inputs[] = {x, x, expressions_of({e.symbol("H")})};
  DimsExprs outputs[2] = {};
  ASSERT_EQ(build_of(*plugin)->getOutputShapes(inputs, 3, nullptr, 0, outputs, 2, e), 0);
  for (const DimsExprs& output : outputs) EXPECT_EQ(texts(output), (std::vector<std::string>{"B", "S", "H"}));
  const TrtType types[] = {TrtType::kBF16, TrtType::kBF16, TrtType::kBF16};
  TrtType output_types[2] = {};
  ASSERT_EQ(build_of(*plugin)->getOutputDataTypes(output_types, 2, types, 3), 0);
  EXPECT_EQ(output_types[1], TrtType::kBF16);
  EXPECT_NE(build_of(*plugin)->getOutputDataTypes(output_types, 1, types, 3), 0) << "an output is missing";
  EXPECT_EQ(build_of(*plugin)->getAliasedInput(0), -1);
  EXPECT_EQ(build_of(*plugin)->getAliasedInput(1), -1);
}

TEST_F(ResidualNormPluginTest, TakesOneHalfTypeInLinearFormat) {
  const Attributes attributes = {1, 1, 0};
  const auto plugin = create_plugin(kName, fields_of(attributes));
  EXPECT_TRUE(supports_all(*plugin, node_of(attributes, 8, 64)));
  EXPECT_TRUE(supports_all(*plugin, node_of(attributes, 8, 64, TrtType::kBF16)));
  EXPECT_FALSE(supports_all(*plugin, node_of(attributes, 8, 64, TrtType::kFLOAT)));
  EXPECT_NE(recorder().details.find("tensor 0 must be fp16 or bf16, got fp32"), std::string::npos);
  for (const size_t other : {1u, 2u, 3u, 4u, 5u}) {
    Node node = node_of(attributes, 8, 64);
    node.tensors[other].desc.type = TrtType::kBF16;
    EXPECT_FALSE(supports_all(*plugin, node)) << "tensor " << other << " of another type";
  }
  Node node = node_of(attributes, 8, 64);
  node.tensors[0].desc.format = nvinfer1::TensorFormat::kCHW2;
  EXPECT_FALSE(supports_all(*plugin, node));
}

TEST_F(ResidualNormPluginTest, ConfiguresOnlyShapesThatFit) {
  const Attributes attributes = {1, 0, 1};
  const auto plugin = create_plugin(kName, fields_of(attributes));
  EXPECT_EQ(configure(*plugin, node_of(attributes, 2048, 4544)), 0);
  EXPECT_EQ(workspace_bytes(*plugin, node_of(attributes, 2048, 4544)), 0u);
  EXPECT_EQ(recorder().errors, "");
  EXPECT_NE(configure(*plugin, node_of(attributes, 8, 20)), 0);
  EXPECT_NE(recorder().errors.find("ResidualNorm with 8 rows, H = 20"), std::string::npos) << recorder().errors;
  Node node = node_of(attributes, 8, 64);
  node.tensors[2].desc.dims = dims({32});
  EXPECT_NE(configure(*plugin, node), 0);
  EXPECT_NE(recorder().errors.find("gain must have shape [64]"), std::string::npos) << recorder().errors;
}

TEST_F(ResidualNormPluginTest, SerializesEveryFieldAndClonesShareNothing) {
  const Fields fields = fields_of({1, 0, 1, 3e-6f});
  expect_serialized(*create_plugin(kName, fields), kName, fields);
}

// --- With a GPU ---

class ResidualNormPluginGpuTest : public PluginGpuTest {
 protected:
  template <typename T>
  void check(const Attributes& a, int tokens, int width) {
    SCOPED_TRACE(std::to_string(tokens) + " x " + std::to_string(width));
    std::mt19937 random(test_seed());
    const size_t count = static_cast<size_t>(tokens) * width;
    const std::vector<T> x = random_normal<T>(count, 5.f, 100.f, random);
    const std::vector<T> residual = random_normal<T>(count, 0.f, 100.f, random);
    const std::vector<T> gain = random_normal<T>(width, 1.f, 0.3f, random);
    const std::vector<T> bias = random_normal<T>(width, 0.f, 1.f, random);
    const DeviceArray<T> d_x(x), d_residual(residual), d_gain(gain), d_bias(bias), y(count), sum(count);
    std::vector<const void*> inputs = {d_x.get()};
    if (a.has_residual) inputs.push_back(d_residual.get());
    inputs.push_back(d_gain.get());
    if (a.has_bias) inputs.push_back(d_bias.get());
    std::vector<void*> outputs = {y.get()};
    if (a.has_residual) outputs.push_back(sum.get());

    std::vector<double> sums, want;
    for (size_t i = 0; i < count; ++i) {
      const float added = static_cast<float>(x[i]) + (a.has_residual ? static_cast<float>(residual[i]) : 0.f);
      sums.push_back(static_cast<float>(static_cast<T>(added)));
    }
    for (int row = 0; row < tokens; ++row) {
      const double* const values = &sums[static_cast<size_t>(row) * width];
      double mean = 0.0, squares = 0.0;
      for (int i = 0; i < width; ++i) mean += a.rms ? 0.0 : values[i] / width;
      for (int i = 0; i < width; ++i) squares += (values[i] - mean) * (values[i] - mean) / width;
      for (int i = 0; i < width; ++i) {
        const double scaled = (values[i] - mean) / std::sqrt(squares + a.epsilon) * static_cast<float>(gain[i]);
        want.push_back(scaled + (a.has_bias ? static_cast<float>(bias[i]) : 0.f));
      }
    }
    EnginePlugin plugin(kName, fields_of(a), node_of(a, tokens, width, TrtTypeOf<T>::value));
    for (const bool in_graph : {false, true}) {
      ASSERT_CUDA(cudaMemset(y.get(), 0xff, count * sizeof(T)));  // NaN
      ASSERT_CUDA(cudaMemset(sum.get(), 0xff, count * sizeof(T)));
      in_graph ? plugin.run_in_graph(inputs, outputs) : plugin.run(inputs, outputs);
      EXPECT_LT(relative_error(widened(y.host()), want), TrtTypeOf<T>::tolerance);
      if (a.has_residual) {
        EXPECT_EQ(widened(sum.host()), sums);
      }
    }
  }
};

TEST_F(ResidualNormPluginGpuTest, ComputesTheNorm) {
  for (const int tokens : {1, 5, 64}) {
    check<__half>({1, 0, 1}, tokens, 4096);
    check<__half>({0, 0, 1}, tokens, 576);
    check<__nv_bfloat16>({1, 1, 0}, tokens, 4544);
    check<__half>({0, 1, 0}, tokens, 72);
  }
}

TEST_F(ResidualNormPluginGpuTest, ReportsALaunchThatFails) {
  EnginePlugin plugin(kName, fields_of({0, 0, 1}), node_of({0, 0, 1}, 3, 64));
  EXPECT_NE(plugin.enqueue({nullptr, nullptr}, {nullptr}), 0);
  EXPECT_NE(recorder().errors.find("ResidualNorm with 3 rows of 64: launch failed"), std::string::npos)
      << recorder().errors;
}

}  // namespace
}  // namespace awq2trt
