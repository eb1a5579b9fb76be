// GatedActivation as TensorRT sees it. On a GPU against its definition, in fp64.
#include <cmath>

#include "trt/plugin_test.h"

namespace awq2trt {
namespace {

constexpr char kName[] = "GatedActivation";

Fields fields_of(int32_t activation) {
  Fields fields;
  fields.integer("activation", activation);
  return fields;
}

Node node_of(int64_t max_tokens, int64_t width, TrtType type = TrtType::kHALF) {
  return {{tensor(type, dims({1, -1, 2 * width}), dims({1, max_tokens, 2 * width})),
           tensor(type, dims({1, -1, width}), dims({1, max_tokens, width}))}};
}

class GatedActivationPluginTest : public PluginTest {};

TEST_F(GatedActivationPluginTest, RefusesActivationsThatThereAreNot) {
  EXPECT_NE(create_plugin(kName, fields_of(3)), nullptr);
  EXPECT_EQ(create_plugin(kName, fields_of(4)), nullptr);
  EXPECT_NE(recorder().errors.find("activation must be 0 to 3, got 4"), std::string::npos) << recorder().errors;
  EXPECT_NE(recorder().errors.find("cannot create the plugin of node 'node'"), std::string::npos);
}

TEST_F(GatedActivationPluginTest, TheOutputIsHalfAsWide) {
  const auto plugin = create_plugin(kName, fields_of(0));
  const auto infer = [&](Expressions& e, const IDimensionExpr* width, DimsExprs* output) {
    const DimsExprs x = expressions_of({e.symbol("B"), e.symbol("S"), width});
    return build_of(*plugin)->getOutputShapes(&x, 1, nullptr, 0, output, 1, e);
  };
  Expressions e;
  DimsExprs output = {};
  ASSERT_EQ(infer(e, e.symbol("W"), &output), 0);
  EXPECT_EQ(texts(output), (std::vector<std::string>{"B", "S", "W / 2"}));
  ASSERT_EQ(infer(e, e.number(22016), &output), 0);
  EXPECT_EQ(texts(output), (std::vector<std::string>{"B", "S", "22016 / 2"}));
  EXPECT_NE(infer(e, e.number(7), &output), 0);
  EXPECT_NE(recorder().errors.find("last dimension of X must be even, got 7"), std::string::npos) << recorder().errors;
  const DimsExprs scalar = {};
  EXPECT_NE(build_of(*plugin)->getOutputShapes(&scalar, 1, nullptr, 0, &output, 1, e), 0);
}

TEST_F(GatedActivationPluginTest, TakesOneHalfTypeAndWidthsWithAKernel) {
  const auto plugin = create_plugin(kName, fields_of(0));
  EXPECT_TRUE(supports_all(*plugin, node_of(8, 64, TrtType::kBF16)));
  EXPECT_FALSE(supports_all(*plugin, node_of(8, 64, TrtType::kFLOAT)));
  Node node = node_of(8, 64);
  node.tensors[1].desc.type = TrtType::kFLOAT;
  EXPECT_FALSE(supports_all(*plugin, node));
  EXPECT_NE(recorder().details.find("tensor 1 must be fp16, got fp32"), std::string::npos) << recorder().details;
  EXPECT_EQ(configure(*plugin, node_of(4096, 11008)), 0);
  EXPECT_NE(configure(*plugin, node_of(8, 12)), 0);
  EXPECT_NE(recorder().errors.find("GatedActivation with 8 rows, I = 12"), std::string::npos) << recorder().errors;
}

TEST_F(GatedActivationPluginTest, SerializesItsField) {
  const Fields fields = fields_of(2);
  expect_serialized(*create_plugin(kName, fields), kName, fields);
}

// --- With a GPU ---

double activated(int32_t activation, double x) {
  switch (activation) {
    case 0:
      return x / (1.0 + std::exp(-x));
    case 1:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case 2:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    default:
      return std::max(x, 0.0);
  }
}

class GatedActivationPluginGpuTest : public PluginGpuTest {
 protected:
  template <typename T>
  void check(int32_t activation, int tokens, int width) {
    SCOPED_TRACE(std::to_string(activation) + ", " + std::to_string(tokens) + " x " + std::to_string(width));
    std::mt19937 random(test_seed());
    const size_t count = static_cast<size_t>(tokens) * width;
    const std::vector<T> x = random_normal<T>(2 * count, 0.f, 2.f, random);
    std::vector<double> want;
    for (size_t i = 0; i < count; ++i) {
      const T* const row = &x[i / width * 2 * width];
      want.push_back(activated(activation, static_cast<float>(row[i % width])) *
                     static_cast<float>(row[width + i % width]));
    }
    const DeviceArray<T> d_x(x), y(count);
    EnginePlugin plugin(kName, fields_of(activation), node_of(tokens, width, TrtTypeOf<T>::value));
    for (const bool in_graph : {false, true}) {
      ASSERT_CUDA(cudaMemset(y.get(), 0xff, count * sizeof(T)));  // NaN
      in_graph ? plugin.run_in_graph({d_x.get()}, {y.get()}) : plugin.run({d_x.get()}, {y.get()});
      EXPECT_LT(relative_error(widened(y.host()), want), TrtTypeOf<T>::tolerance);
    }
  }
};

TEST_F(GatedActivationPluginGpuTest, ComputesEveryActivation) {
  for (const int32_t activation : {0, 1, 2, 3}) {
    for (const int tokens : {1, 7, 64}) {
      check<__half>(activation, tokens, 11008);
      check<__nv_bfloat16>(activation, tokens, 136);
    }
  }
}

}  // namespace
}  // namespace awq2trt
