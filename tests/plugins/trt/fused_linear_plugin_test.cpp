// FusedLinear as TensorRT sees it. On a GPU against the operators that it is made of, each the plugin of its own, to
// the bit: those have tests against their definitions.
#include "kernels/fused_linear/epilogue.h"
#include "trt/plugin_test.h"

namespace awq2trt {
namespace {

constexpr char kName[] = "FusedLinear";

struct Attributes {
  int32_t group_size, has_zeros, has_bias, has_norm, has_residual, has_norm_bias, rms, has_activation, activation;
  int32_t gated, has_addend;
  float epsilon;
};
constexpr Attributes kAll = {128, 1, 1, 1, 1, 1, 0, 1, 2, 1, 0, 1e-5f};
constexpr Attributes kRms = {128, 1, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1e-5f};
constexpr Attributes kGate = {128, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0.f};
constexpr Attributes kRmsGate = {128, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 1e-6f};
constexpr Attributes kGelu = {128, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1e-5f};
constexpr Attributes kAddend = {128, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0.f};

Fields fields_of(const Attributes& a) {
  Fields fields;
  fields.integer("group_size", a.group_size).integer("has_zeros", a.has_zeros).integer("has_bias", a.has_bias);
  fields.integer("has_norm", a.has_norm).integer("has_residual", a.has_residual);
  fields.integer("has_norm_bias", a.has_norm_bias).integer("rms", a.rms);
  fields.integer("has_activation", a.has_activation).integer("activation", a.activation);
  fields.integer("gated", a.gated).integer("has_addend", a.has_addend);
  fields.number("epsilon", a.epsilon);
  return fields;
}

Node node_of(const Attributes& a, int64_t max_tokens, int64_t n, int64_t k, TrtType type = TrtType::kHALF) {
  const int64_t groups = (k + a.group_size - 1) / a.group_size, width = a.gated ? n / 2 : n;
  const DynamicPluginTensorDesc stream = tensor(type, dims({1, -1, k}), dims({1, max_tokens, k}));
  Node node;
  node.tensors.push_back(stream);
  if (a.has_residual) node.tensors.push_back(stream);
  for (int i = 0; i < a.has_norm + a.has_norm_bias; ++i) node.tensors.push_back(tensor(type, {k}));
  node.tensors.push_back(tensor(TrtType::kINT4, {n, k}));
  node.tensors.push_back(tensor(type, {n, groups}));
  if (a.has_zeros) node.tensors.push_back(tensor(TrtType::kINT4, {n, groups}));
  if (a.has_bias) node.tensors.push_back(tensor(type, {n}));
  const DynamicPluginTensorDesc y = tensor(type, dims({1, -1, width}), dims({1, max_tokens, width}));
  if (a.has_addend) node.tensors.push_back(y);
  node.tensors.push_back(y);
  if (a.has_residual) node.tensors.push_back(stream);
  node.outputs = 1 + a.has_residual;
  return node;
}

class FusedLinearPluginTest : public PluginTest {};

TEST_F(FusedLinearPluginTest, CreatorNamesTheOpAndItsAttributes) {
  nvinfer1::IPluginCreatorV3One* const creator = Library::get().creator(kName);
  EXPECT_STREQ(creator->getPluginVersion(), "1");
  EXPECT_STREQ(creator->getPluginNamespace(), "awq2trt");
  const Fields all = fields_of(kAll);
  const PluginFieldCollection &names = *creator->getFieldNames(), expected = all.collection();
  ASSERT_EQ(names.nbFields, expected.nbFields);
  for (int32_t i = 0; i < expected.nbFields; ++i) {
    EXPECT_STREQ(names.fields[i].name, expected.fields[i].name);
    EXPECT_EQ(names.fields[i].type, expected.fields[i].type);
  }
}

TEST_F(FusedLinearPluginTest, RefusesBadAttributesWithTheReason) {
  Attributes wrong = kAll;
  wrong.rms = 1;
  EXPECT_EQ(create_plugin(kName, fields_of(wrong)), nullptr);
  EXPECT_NE(recorder().errors.find("an RMS norm has no bias"), std::string::npos) << recorder().errors;
  wrong = kRms;
  wrong.has_norm = 0;
  EXPECT_EQ(create_plugin(kName, fields_of(wrong)), nullptr);
  EXPECT_NE(recorder().errors.find("attribute has_norm, has_activation or has_addend must be 1"), std::string::npos)
      << recorder().errors;
  EXPECT_NE(recorder().errors.find("cannot create the plugin of node 'node'"), std::string::npos);
}

TEST_F(FusedLinearPluginTest, OutputsFollowFromCodesAndX) {
  const auto infer = [](const Attributes& a, Expressions& e, const IDimensionExpr* n, DimsExprs* outputs) {
    const auto plugin = create_plugin(kName, fields_of(a));
    const DimsExprs x = expressions_of({e.symbol("B"), e.symbol("S"), e.symbol("K")});
    const DimsExprs codes = expressions_of({n, e.symbol("K")}), vector = expressions_of({e.symbol("K")});
    const DimsExprs inputs[] = {x, x, vector, codes, codes, codes};  // of which the scales' sizes do not count
    return build_of(*plugin)->getOutputShapes(inputs, 6, nullptr, 0, outputs, 2, e);
  };
  Expressions e;
  DimsExprs outputs[2] = {};
  ASSERT_EQ(infer(kRms, e, e.symbol("N"), outputs), 0) << recorder().errors;
  EXPECT_EQ(texts(outputs[0]), (std::vector<std::string>{"B", "S", "N"}));
  EXPECT_EQ(texts(outputs[1]), (std::vector<std::string>{"B", "S", "K"}));
  ASSERT_EQ(infer(kRmsGate, e, e.number(22016), outputs), 0) << recorder().errors;
  EXPECT_EQ(texts(outputs[0]), (std::vector<std::string>{"B", "S", "22016 / 2"}));
  Attributes plain = kRmsGate;
  plain.gated = 0;
  ASSERT_EQ(infer(plain, e, e.number(22016), outputs), 0) << recorder().errors;
  EXPECT_EQ(texts(outputs[0]), (std::vector<std::string>{"B", "S", "22016"}));
  EXPECT_NE(infer(kRmsGate, e, e.number(33), outputs), 0);
  EXPECT_NE(recorder().errors.find("even number of rows N, got 33"), std::string::npos) << recorder().errors;

  const auto plugin = create_plugin(kName, fields_of(kRms));
  const TrtType types[] = {TrtType::kBF16, TrtType::kBF16, TrtType::kBF16,
                           TrtType::kINT4, TrtType::kBF16, TrtType::kINT4};
  TrtType output_types[2] = {};
  ASSERT_EQ(build_of(*plugin)->getOutputDataTypes(output_types, 2, types, 6), 0);
  EXPECT_EQ(output_types[0], TrtType::kBF16);
  EXPECT_EQ(output_types[1], TrtType::kBF16);
  EXPECT_EQ(build_of(*plugin)->getAliasedInput(1), -1) << "the sum is no memory of an input";
}

TEST_F(FusedLinearPluginTest, TakesOneHalfTypeAndInt4) {
  const auto plugin = create_plugin(kName, fields_of(kAll));
  EXPECT_TRUE(supports_all(*plugin, node_of(kAll, 8, 64, 256)));
  EXPECT_TRUE(supports_all(*plugin, node_of(kAll, 8, 64, 256, TrtType::kBF16)));
  EXPECT_FALSE(supports_all(*plugin, node_of(kAll, 8, 64, 256, TrtType::kFLOAT)));
  EXPECT_TRUE(supports_all(*create_plugin(kName, fields_of(kAddend)), node_of(kAddend, 8, 64, 256)));
  for (size_t other = 1; other < node_of(kAll, 8, 64, 256).tensors.size(); ++other) {
    Node node = node_of(kAll, 8, 64, 256);
    node.tensors[other].desc.type = TrtType::kINT8;
    EXPECT_FALSE(supports_all(*plugin, node)) << "tensor " << other << " of another type";
  }
}

TEST_F(FusedLinearPluginTest, ConfiguresOnlyShapesThatFit) {
  const auto plugin = create_plugin(kName, fields_of(kAll));
  EXPECT_EQ(configure(*plugin, node_of(kAll, 2048, 22016, 4096)), 0) << recorder().errors;
  EXPECT_NE(configure(*plugin, node_of(kAll, 8, 40, 256)), 0);
  EXPECT_NE(recorder().errors.find("FusedLinear, part GatedActivation with 8 rows, I = 20"), std::string::npos)
      << recorder().errors;
  Node node = node_of(kAll, 8, 64, 256);
  node.tensors[2].desc.dims = dims({128});
  EXPECT_NE(configure(*plugin, node), 0);
  EXPECT_NE(recorder().errors.find("the gain must have shape [256]"), std::string::npos) << recorder().errors;
  const auto added = create_plugin(kName, fields_of(kAddend));
  EXPECT_EQ(configure(*added, node_of(kAddend, 2048, 4544, 4544)), 0) << recorder().errors;
  node = node_of(kAddend, 8, 64, 256);
  node.tensors[4] = tensor(TrtType::kHALF, dims({1, -1, 256}), dims({1, 8, 256}));
  EXPECT_NE(configure(*added, node), 0);
  EXPECT_NE(recorder().errors.find("the addend must have the shape of y"), std::string::npos) << recorder().errors;
}

TEST_F(FusedLinearPluginTest, WorkspaceIsKnownWithoutAGpu) {
  const auto plugin = create_plugin(kName, fields_of(kRmsGate));
  const size_t results = size_t{2} * 2048 * (4096 + 22016);  // of the norm and of the linear
  const size_t bytes = workspace_bytes(*plugin, node_of(kRmsGate, 2048, 22016, 4096));
  EXPECT_GE(bytes, results);
  EXPECT_LE(bytes, results + (size_t{32} << 20)) << "and the linear's own";
}

TEST_F(FusedLinearPluginTest, SerializesEveryFieldAndClonesShareNothing) {
  const Fields fields = fields_of(kAll);
  expect_serialized(*create_plugin(kName, fields), kName, fields);
}

// --- With a GPU ---

class FusedLinearPluginGpuTest : public PluginGpuTest {
 protected:
  template <typename T>
  void check(const Attributes& a, int m, int n, int k) {
    SCOPED_TRACE("M " + std::to_string(m) + " N " + std::to_string(n) + " K " + std::to_string(k));
    constexpr TrtType kType = TrtTypeOf<T>::value;
    std::mt19937 random(test_seed());
    const size_t count = static_cast<size_t>(m) * k, outputs = static_cast<size_t>(m) * n / (a.gated ? 2 : 1);
    const size_t groups = static_cast<size_t>(n) * ((k + a.group_size - 1) / a.group_size);
    const auto bytes = [&](size_t size) {
      std::vector<uint8_t> values(size);
      for (uint8_t& value : values) value = static_cast<uint8_t>(random());
      return values;
    };
    const DeviceArray<T> x(random_normal<T>(count, 0.f, 2.f, random)),
        residual(random_normal<T>(count, 1.f, 2.f, random));
    const DeviceArray<T> gain(random_normal<T>(k, 1.f, 0.3f, random)), norm_bias(random_normal<T>(k, 0.f, 1.f, random));
    const DeviceArray<T> scales(random_normal<T>(groups, 0.01f, 0.002f, random)),
        bias(random_normal<T>(n, 0.f, 1.f, random)), addend(random_normal<T>(outputs, 0.f, 5.f, random));
    const DeviceArray<uint8_t> codes(bytes(static_cast<size_t>(n) * k / 2)), zeros(bytes((groups + 1) / 2));

    // Apart: norm, linear, activation; without gates, what follows the linear is no plugin but a kernel.
    const DeviceArray<T> normed(count), projected(static_cast<size_t>(m) * n), apart(outputs), apart_sum(count);
    const DynamicPluginTensorDesc stream = tensor(kType, dims({1, -1, k}), dims({1, m, k}));
    std::vector<const void*> norm_inputs = {x.get()}, linear_inputs = {a.has_norm ? normed.get() : x.get()};
    if (a.has_norm) {
      Node node;
      Fields fields;
      fields.integer("has_residual", a.has_residual).integer("has_bias", a.has_norm_bias).integer("rms", a.rms);
      fields.number("epsilon", a.epsilon);
      node.tensors = {stream};
      if (a.has_residual) node.tensors.push_back(stream), norm_inputs.push_back(residual.get());
      node.tensors.push_back(tensor(kType, {k})), norm_inputs.push_back(gain.get());
      if (a.has_norm_bias) node.tensors.push_back(tensor(kType, {k})), norm_inputs.push_back(norm_bias.get());
      node.outputs = 1 + a.has_residual;
      for (int i = 0; i < node.outputs; ++i) node.tensors.push_back(stream);
      EnginePlugin("ResidualNorm", fields, node).run(norm_inputs, {normed.get(), apart_sum.get()});
    }
    Attributes linear = {a.group_size, a.has_zeros, a.has_bias};
    Fields linear_fields;
    linear_fields.integer("group_size", a.group_size).integer("has_zeros", a.has_zeros).integer("has_bias", a.has_bias);
    for (const void* const input : {static_cast<const void*>(codes.get()), static_cast<const void*>(scales.get())}) {
      linear_inputs.push_back(input);
    }
    if (a.has_zeros) linear_inputs.push_back(zeros.get());
    if (a.has_bias) linear_inputs.push_back(bias.get());
    T* const linear_y = a.gated ? projected.get() : apart.get();
    EnginePlugin("W4A16Linear", linear_fields, node_of(linear, m, n, k, kType)).run(linear_inputs, {linear_y});
    if (a.gated) {
      Fields fields;
      fields.integer("activation", a.activation);
      const Node node = {
          {tensor(kType, dims({1, -1, n}), dims({1, m, n})), tensor(kType, dims({1, -1, n / 2}), dims({1, m, n / 2}))}};
      EnginePlugin("GatedActivation", fields, node).run({projected.get()}, {apart.get()});
    } else if (a.has_activation || a.has_addend) {
      FusedLinearProblem problem = {};
      problem.linear.m = m, problem.linear.n = n;
      problem.linear.dtype = kType == TrtType::kHALF ? DataType::kHalf : DataType::kBFloat16;
      problem.has_activation = a.has_activation != 0, problem.has_addend = a.has_addend != 0;
      problem.activation.activation = static_cast<Activation>(a.activation);
      ASSERT_CUDA(launch_epilogue(problem, addend.get(), apart.get(), false, nullptr));
    }

    std::vector<const void*> inputs = norm_inputs;
    inputs.insert(inputs.end(), linear_inputs.begin() + 1, linear_inputs.end());
    if (a.has_addend) inputs.push_back(addend.get());
    const DeviceArray<T> y(outputs), sum(count);
    EnginePlugin plugin(kName, fields_of(a), node_of(a, m, n, k, kType));
    for (const bool in_graph : {false, true}) {
      ASSERT_CUDA(cudaMemset(y.get(), 0xff, outputs * sizeof(T)));  // NaN
      ASSERT_CUDA(cudaMemset(sum.get(), 0xff, count * sizeof(T)));
      const std::vector<void*> results = {y.get(), sum.get()};
      in_graph ? plugin.run_in_graph(inputs, results) : plugin.run(inputs, results);
      SCOPED_TRACE(in_graph ? "in a CUDA graph" : "on a stream");
      EXPECT_LT(relative_error(widened(y.host()), widened(apart.host())), TrtTypeOf<T>::tolerance);
      if ((k + 127) / 128 % 2 == 0 || !a.gated) {  // else sums may be added in another order
        EXPECT_EQ(widened(y.host()), widened(apart.host()));
      }
      if (a.has_residual) {
        EXPECT_EQ(widened(sum.host()), widened(apart_sum.host()));
      }
    }
  }
};

TEST_F(FusedLinearPluginGpuTest, ComputesWhatTheOperatorsApartCompute) {
  for (const int m : {1, 2, 7, 40}) {
    for (const Attributes& a : {kAll, kRms, kGate, kRmsGate, kGelu, kAddend}) {
      check<__half>(a, m, 304, 2048);
      check<__half>(a, m, 6144, 2048);
      check<__nv_bfloat16>(a, m, 144, 576);
      check<__half>(a, m, 64, 1000);
    }
  }
}

TEST_F(FusedLinearPluginGpuTest, ReportsALaunchThatFails) {
  EnginePlugin plugin(kName, fields_of(kRms), node_of(kRms, 3, 64, 256));
  EXPECT_NE(plugin.enqueue({nullptr, nullptr, nullptr, nullptr, nullptr, nullptr}, {nullptr, nullptr}), 0);
  EXPECT_NE(recorder().errors.find("FusedLinear with 3 rows of 256: launch failed"), std::string::npos)
      << recorder().errors;
}

}  // namespace
}  // namespace awq2trt
