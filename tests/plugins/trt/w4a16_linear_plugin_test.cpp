// W4A16Linear as TensorRT sees it. On a GPU against the CPU's reference (kernels/w4a16_linear/reference.h), in fp64.
#include <random>

#include "kernels/w4a16_linear/reference.h"
#include "ops/w4a16_linear.h"
#include "trt/plugin_test.h"

namespace awq2trt {
namespace {

constexpr char kName[] = "W4A16Linear";

struct Attributes {
  int32_t group_size, has_zeros, has_bias;
};

Fields fields_of(const Attributes& a) {
  Fields fields;
  fields.integer("group_size", a.group_size).integer("has_zeros", a.has_zeros).integer("has_bias", a.has_bias);
  return fields;
}

std::unique_ptr<IPluginV3> create(const Attributes& attributes) { return create_plugin(kName, fields_of(attributes)); }

Node node_of(Attributes a, int64_t max_tokens, int64_t n, int64_t k, TrtType type = TrtType::kHALF) {
  const int64_t groups = (k + a.group_size - 1) / a.group_size;
  Node node;
  node.tensors.push_back(tensor(type, dims({1, -1, k}), dims({1, max_tokens, k})));
  node.tensors.push_back(tensor(TrtType::kINT4, dims({n, k}), dims({n, k})));
  node.tensors.push_back(tensor(type, dims({n, groups}), dims({n, groups})));
  if (a.has_zeros) node.tensors.push_back(tensor(TrtType::kINT4, dims({n, groups}), dims({n, groups})));
  if (a.has_bias) node.tensors.push_back(tensor(type, dims({n}), dims({n})));
  node.tensors.push_back(tensor(type, dims({1, -1, n}), dims({1, max_tokens, n})));
  return node;
}

class W4A16LinearPluginTest : public PluginTest {};

TEST_F(W4A16LinearPluginTest, CreatorNamesTheOp) {
  nvinfer1::IPluginCreatorV3One* const creator = Library::get().creator(kName);
  EXPECT_STREQ(creator->getPluginName(), "W4A16Linear");
  EXPECT_STREQ(creator->getPluginVersion(), "1");
  EXPECT_STREQ(creator->getPluginNamespace(), "awq2trt");
  const PluginFieldCollection& fields = *creator->getFieldNames();
  ASSERT_EQ(fields.nbFields, 3);
  EXPECT_STREQ(fields.fields[0].name, "group_size");
  EXPECT_STREQ(fields.fields[1].name, "has_zeros");
  EXPECT_STREQ(fields.fields[2].name, "has_bias");
}

TEST_F(W4A16LinearPluginTest, TakesAttributesOf64Bits) {
  const int64_t group_size = 128, yes = 1;
  const PluginField fields[] = {{w4a16_linear::kGroupSize, &group_size, PluginFieldType::kINT64, 1},
                                {w4a16_linear::kHasZeros, &yes, PluginFieldType::kINT64, 1},
                                {w4a16_linear::kHasBias, &yes, PluginFieldType::kINT64, 1}};
  const PluginFieldCollection collection = {3, fields};
  const std::unique_ptr<IPluginV3> plugin(
      Library::get().creator(kName)->createPlugin("node", &collection, TensorRTPhase::kBUILD));
  EXPECT_NE(plugin, nullptr);
}

TEST_F(W4A16LinearPluginTest, RefusesBadAttributesWithTheReason) {
  EXPECT_EQ(create({0, 0, 0}), nullptr);
  EXPECT_NE(recorder().errors.find("group_size must be at least 1, got 0"), std::string::npos) << recorder().errors;
  EXPECT_NE(recorder().errors.find("cannot create the plugin of node 'node'"), std::string::npos);
  EXPECT_EQ(create({128, 2, 0}), nullptr);
  EXPECT_NE(recorder().errors.find("has_zeros must be 0 or 1, got 2"), std::string::npos) << recorder().errors;
  const PluginFieldCollection none = {0, nullptr};
  EXPECT_EQ(Library::get().creator(kName)->createPlugin("node", &none, TensorRTPhase::kBUILD), nullptr);
  EXPECT_NE(recorder().errors.find("group_size is missing"), std::string::npos) << recorder().errors;
}

TEST_F(W4A16LinearPluginTest, InfersShapeAndType) {
  const auto plugin = create({128, 0, 0});
  Expressions e;
  const DimsExprs inputs[] = {expressions_of({e.symbol("B"), e.symbol("S"), e.symbol("K")}),
                              expressions_of({e.symbol("N"), e.symbol("K")}),
                              expressions_of({e.symbol("N"), e.symbol("groups")})};
  DimsExprs output = {};
  ASSERT_EQ(build_of(*plugin)->getOutputShapes(inputs, 3, nullptr, 0, &output, 1, e), 0);
  EXPECT_EQ(texts(output), (std::vector<std::string>{"B", "S", "N"}));

  const TrtType types[] = {TrtType::kBF16, TrtType::kINT4, TrtType::kBF16};
  TrtType output_type = TrtType::kFLOAT;
  ASSERT_EQ(build_of(*plugin)->getOutputDataTypes(&output_type, 1, types, 3), 0);
  EXPECT_EQ(output_type, TrtType::kBF16);
  EXPECT_NE(build_of(*plugin)->getOutputDataTypes(&output_type, 1, types, 2), 0) << "an input is missing";
}

TEST_F(W4A16LinearPluginTest, TakesFp16AndBf16Only) {
  const Attributes attributes = {128, 1, 1};
  const auto plugin = create(attributes);
  EXPECT_TRUE(supports_all(*plugin, node_of(attributes, 16, 64, 256, TrtType::kHALF)));
  EXPECT_TRUE(supports_all(*plugin, node_of(attributes, 16, 64, 256, TrtType::kBF16)));
  EXPECT_FALSE(supports_all(*plugin, node_of(attributes, 16, 64, 256, TrtType::kFLOAT)));
  EXPECT_NE(recorder().details.find("tensor 0 must be fp16 or bf16, got fp32"), std::string::npos)
      << recorder().details;

  Node node = node_of(attributes, 16, 64, 256);
  node.tensors[3].desc.type = TrtType::kINT8;
  EXPECT_FALSE(supports_all(*plugin, node)) << "int8 zero points";
  node = node_of(attributes, 16, 64, 256);
  node.tensors[4].desc.type = TrtType::kBF16;
  EXPECT_FALSE(supports_all(*plugin, node)) << "bf16 bias to fp16 activations";
  node = node_of(attributes, 16, 64, 256);
  node.tensors[0].desc.format = nvinfer1::TensorFormat::kCHW2;
  EXPECT_FALSE(supports_all(*plugin, node)) << "a vectorized format";
}

TEST_F(W4A16LinearPluginTest, ConfiguresOnlyShapesThatFit) {
  const Attributes attributes = {128, 1, 1};
  const auto configure = [&](const Node& node) {
    recorder().errors.clear();
    return build_of(*create(attributes))->configurePlugin(node.tensors.data(), node.inputs(), node.output(), 1);
  };
  EXPECT_EQ(configure(node_of(attributes, 2048, 4672, 4544)), 0);
  EXPECT_EQ(recorder().errors, "");

  EXPECT_NE(configure(node_of(attributes, 16, 64, 260)), 0);
  EXPECT_NE(recorder().errors.find("K must be a positive multiple of 8"), std::string::npos) << recorder().errors;

  Node node = node_of(attributes, 16, 64, 576);
  node.tensors[2].desc.dims = dims({64, 4});
  EXPECT_NE(configure(node), 0);
  EXPECT_NE(recorder().errors.find("expected scales [64, 5]"), std::string::npos) << recorder().errors;

  node = node_of(attributes, 16, 64, 576);
  node.tensors[4].desc.dims = dims({63});
  EXPECT_NE(configure(node), 0);
  EXPECT_NE(recorder().errors.find("bias must have shape [64]"), std::string::npos) << recorder().errors;

  node = node_of(attributes, 16, 64, 576);
  node.tensors[0].max = dims({1, 16, 512});
  EXPECT_NE(configure(node), 0);
  EXPECT_NE(recorder().errors.find("last dimension of X is 512"), std::string::npos) << recorder().errors;
}

TEST_F(W4A16LinearPluginTest, SerializesEveryFieldAndClonesShareNothing) {
  const Fields fields = fields_of({64, 1, 0});
  expect_serialized(*create({64, 1, 0}), kName, fields);
}

TEST_F(W4A16LinearPluginTest, WorkspaceIsKnownWithoutAGpu) {
  const Attributes attributes = {128, 0, 0};
  const Node wide = node_of(attributes, 2048, 22016, 4096), narrow = node_of(attributes, 64, 128, 64);
  const auto plugin = create(attributes);
  const size_t bytes = build_of(*plugin)->getWorkspaceSize(wide.tensors.data(), 3, wide.output(), 1);
  EXPECT_GT(bytes, 0u);
  EXPECT_LE(bytes, size_t{32} << 20) << "split sums of at most 2 x 192 tiles of 128 x 128";
  EXPECT_EQ(build_of(*plugin)->getWorkspaceSize(narrow.tensors.data(), 3, narrow.output(), 1), 0u)
      << "K is never split";
}

// --- With a GPU ---

struct RandomNode {
  RandomNode(Attributes attributes, int m, int n, int k)
      : problem{m,
                n,
                k,
                attributes.group_size,
                awq2trt::DataType::kHalf,
                attributes.has_zeros != 0,
                attributes.has_bias != 0} {
    std::mt19937 random(std::random_device{}());
    std::normal_distribution<float> normal;
    const size_t scale_count = static_cast<size_t>(n) * problem.groups();
    for (int i = 0; i < m * k; ++i) x.push_back(__float2half(normal(random)));
    for (int i = 0; i < n * k / 2; ++i) codes.push_back(static_cast<uint8_t>(random()));
    for (size_t i = 0; i < scale_count; ++i) scales.push_back(__float2half(0.01f + 0.002f * normal(random)));
    for (size_t i = 0; i < (scale_count + 1) / 2; ++i) zeros.push_back(static_cast<uint8_t>(random()));
    for (int i = 0; i < n; ++i) bias.push_back(__float2half(normal(random)));
  }

  double error_of(const std::vector<__half>& y) const {
    const std::vector<double> weights =
        dequantize_weights(problem, codes.data(), widened(scales).data(), problem.has_zeros ? zeros.data() : nullptr);
    const std::vector<double> expected =
        linear_reference(problem, widened(x).data(), weights, problem.has_bias ? widened(bias).data() : nullptr);
    return relative_error(widened(y), expected);
  }

  GemmProblem problem;
  std::vector<__half> x, scales, bias;
  std::vector<uint8_t> codes, zeros;
};

class W4A16LinearPluginGpuTest : public PluginGpuTest {
 protected:
  static void check(Attributes attributes, int m, int n, int k) {
    SCOPED_TRACE("M " + std::to_string(m) + " N " + std::to_string(n) + " K " + std::to_string(k) + " G " +
                 std::to_string(attributes.group_size));
    const RandomNode host(attributes, m, n, k);
    const DeviceArray<__half> x(host.x), scales(host.scales), bias(host.bias), y(static_cast<size_t>(m) * n);
    const DeviceArray<uint8_t> codes(host.codes), zeros(host.zeros);
    std::vector<const void*> inputs = {x.get(), codes.get(), scales.get()};
    if (attributes.has_zeros) inputs.push_back(zeros.get());
    if (attributes.has_bias) inputs.push_back(bias.get());
    EnginePlugin plugin(kName, fields_of(attributes), node_of(attributes, m, n, k));
    for (const bool in_graph : {false, true}) {
      ASSERT_CUDA(cudaMemset(y.get(), 0xff, host.x.size() / k * n * sizeof(__half)));  // NaN
      in_graph ? plugin.run_in_graph(inputs, {y.get()}) : plugin.run(inputs, {y.get()});
      EXPECT_LT(host.error_of(y.host()), 1e-3) << (in_graph ? "in a CUDA graph" : "on a stream");
    }
  }
};

TEST_F(W4A16LinearPluginGpuTest, ComputesTheLayer) {
  for (const int32_t group_size : {32, 128, 576}) {
    for (const int32_t flags : {0, 1, 2, 3}) {
      for (const int m : {1, 7, 40}) check({group_size, flags & 1, flags >> 1}, m, 131, 576);
    }
  }
  check({128, 1, 1}, 12, 64, 4096);  // splits K, so it uses the workspace
  check({48, 1, 1}, 3, 64, 576);     // the general kernel
}

TEST_F(W4A16LinearPluginGpuTest, ReportsALaunchThatFails) {
  EnginePlugin plugin(kName, fields_of({128, 0, 0}), node_of({128, 0, 0}, 1, 64, 256));
  EXPECT_NE(plugin.enqueue({nullptr, nullptr, nullptr}, {nullptr}), 0);
  EXPECT_NE(recorder().errors.find("W4A16Linear with 1 rows of 256: launch failed"), std::string::npos)
      << recorder().errors;
}

}  // namespace
}  // namespace awq2trt
