// CachedAttention as TensorRT sees it. On a GPU against the CPU's reference (kernels/cached_attention/reference.h).
#include <algorithm>
#include <cmath>

#include "kernels/cached_attention/reference.h"
#include "trt/plugin_test.h"

namespace awq2trt {
namespace {

constexpr char kName[] = "CachedAttention";

struct Attributes {
  int32_t num_heads, num_kv_heads, rotary_dim = 0, interleaved = 0, window = 0, has_norms = 0, has_alibi = 0;
  float scale = 0.125f, softcap = 0.f, clip = 0.f, norm_eps = 0.f;
  int32_t has_cache_scales = 0, has_visible_end = 0;
};

Fields fields_of(const Attributes& a) {
  Fields fields;
  fields.integer("num_heads", a.num_heads).integer("num_kv_heads", a.num_kv_heads);
  fields.integer("rotary_dim", a.rotary_dim).integer("interleaved", a.interleaved).integer("window", a.window);
  fields.integer("has_norms", a.has_norms).integer("has_alibi", a.has_alibi);
  fields.number("scale", a.scale).number("softcap", a.softcap).number("clip", a.clip).number("norm_eps", a.norm_eps);
  fields.integer("has_cache_scales", a.has_cache_scales).integer("has_visible_end", a.has_visible_end);
  return fields;
}

// One conversation: B = 1.
Node node_of(const Attributes& a, int64_t max_tokens, int64_t head_dim, int64_t capacity,
             TrtType type = TrtType::kHALF) {
  const int64_t width = (a.num_heads + 2 * a.num_kv_heads) * head_dim;
  const TrtType cache_type = a.has_cache_scales != 0 ? TrtType::kINT8 : type;
  const DynamicPluginTensorDesc cache = tensor(cache_type, {1, a.num_kv_heads, capacity, head_dim});
  const std::vector<DynamicPluginTensorDesc> scales(2 * static_cast<size_t>(a.has_cache_scales),
                                                    tensor(type, {1, a.num_kv_heads, capacity}));
  Node node;
  node.tensors = {tensor(type, dims({1, -1, width}), dims({1, max_tokens, width})), tensor(TrtType::kINT64, {1}), cache,
                  cache};
  if (a.rotary_dim != 0) node.tensors.insert(node.tensors.end(), 2, tensor(type, {capacity, a.rotary_dim / 2}));
  if (a.has_norms != 0) node.tensors.insert(node.tensors.end(), 2, tensor(type, {head_dim}));
  if (a.has_alibi != 0) node.tensors.push_back(tensor(TrtType::kFLOAT, {a.num_heads}));
  if (a.has_visible_end != 0) node.tensors.push_back(tensor(TrtType::kINT64, {capacity}));
  node.tensors.insert(node.tensors.end(), scales.begin(), scales.end());
  const int64_t heads = a.num_heads * head_dim;
  node.tensors.push_back(tensor(type, dims({1, -1, heads}), dims({1, max_tokens, heads})));
  node.tensors.insert(node.tensors.end(), 2, cache);
  node.tensors.insert(node.tensors.end(), scales.begin(), scales.end());
  node.outputs = 3 + static_cast<int32_t>(scales.size());
  return node;
}

const Attributes kEverything = {8, 2, 32, 1, 33, 1, 1, 0.1f, 5.f, 2.f, 1e-6f, 0};
const Attributes kWithEnds = {8, 2, 64, 0, 33, 1, 0, 0.1f, 0.f, 0.f, 1e-6f, 0, 1};

class CachedAttentionPluginTest : public PluginTest {};

TEST_F(CachedAttentionPluginTest, CreatorNamesEveryAttribute) {
  const PluginFieldCollection& names = *Library::get().creator(kName)->getFieldNames();
  const Fields all = fields_of(kEverything);
  const PluginFieldCollection expected = all.collection();
  ASSERT_EQ(names.nbFields, 13);
  for (int32_t i = 0; i < 13; ++i) {
    EXPECT_STREQ(names.fields[i].name, expected.fields[i].name);
    EXPECT_EQ(names.fields[i].type, expected.fields[i].type);
  }
}

TEST_F(CachedAttentionPluginTest, RefusesBadAttributesWithTheReason) {
  EXPECT_EQ(create_plugin(kName, fields_of({8, 3})), nullptr);
  EXPECT_NE(recorder().errors.find("num_heads = 8 must be a multiple of num_kv_heads = 3"), std::string::npos)
      << recorder().errors;
  Attributes negative = {8, 2};
  negative.softcap = -1.f;
  EXPECT_EQ(create_plugin(kName, fields_of(negative)), nullptr);
  EXPECT_NE(recorder().errors.find("softcap cannot be negative"), std::string::npos) << recorder().errors;
}

TEST_F(CachedAttentionPluginTest, ThePresentIsTheMemoryOfThePast) {
  const auto plugin = create_plugin(kName, fields_of({8, 2}));
  EXPECT_STREQ(build_of(*plugin)->getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD");
  EXPECT_EQ(build_of(*plugin)->getInterfaceInfo().major, 2) << "with aliased inputs";
  EXPECT_EQ(build_of(*plugin)->getAliasedInput(0), -1);
  EXPECT_EQ(build_of(*plugin)->getAliasedInput(1), 2);
  EXPECT_EQ(build_of(*plugin)->getAliasedInput(2), 3);
}

TEST_F(CachedAttentionPluginTest, AnAttributeThatOlderNodesLackIsZero) {
  Fields fields;
  fields.integer("num_heads", 8).integer("num_kv_heads", 2);
  for (const char* name : {"rotary_dim", "interleaved", "window", "has_norms", "has_alibi"}) fields.integer(name, 0);
  for (const char* name : {"scale", "softcap", "clip", "norm_eps"}) fields.number(name, 0.f);
  const auto plugin = create_plugin(kName, fields);
  ASSERT_NE(plugin, nullptr) << recorder().errors;
  EXPECT_EQ(build_of(*plugin)->getNbOutputs(), 3);
  EXPECT_TRUE(supports_all(*plugin, node_of({8, 2}, 16, 64, 128))) << recorder().details;
}

TEST_F(CachedAttentionPluginTest, EndsAreAnInputOfInt64) {
  const auto plugin = create_plugin(kName, fields_of(kWithEnds));
  ASSERT_NE(plugin, nullptr) << recorder().errors;
  Node node = node_of(kWithEnds, 16, 64, 128);
  EXPECT_TRUE(supports_all(*plugin, node)) << recorder().details;
  EXPECT_EQ(configure(*plugin, node), 0) << recorder().errors;
  node.tensors[8].desc.dims = dims({127});
  EXPECT_NE(configure(*plugin, node), 0);
  EXPECT_NE(recorder().errors.find("visible_end must have shape [at least 128]"), std::string::npos)
      << recorder().errors;
  node.tensors[8].desc.type = TrtType::kINT32;
  EXPECT_FALSE(supports_all(*plugin, node));
  EXPECT_NE(recorder().details.find("tensor 8 must be int64, got int32"), std::string::npos) << recorder().details;
}

TEST_F(CachedAttentionPluginTest, ACacheOfCodesHasScalesOfItsOwn) {
  Attributes attributes = {8, 2, 64};
  attributes.has_cache_scales = 1;
  const auto plugin = create_plugin(kName, fields_of(attributes));
  ASSERT_NE(plugin, nullptr) << recorder().errors;
  ASSERT_EQ(build_of(*plugin)->getNbOutputs(), 5);
  const int32_t pasts[] = {-1, 2, 3, 6, 7};
  for (int32_t i = 0; i < 5; ++i) EXPECT_EQ(build_of(*plugin)->getAliasedInput(i), pasts[i]);

  const TrtType half = TrtType::kHALF,
                types[] = {half, TrtType::kINT64, TrtType::kINT8, TrtType::kINT8, half, half, half, half};
  TrtType output_types[5] = {};
  ASSERT_EQ(build_of(*plugin)->getOutputDataTypes(output_types, 5, types, 8), 0);
  const TrtType expected[] = {half, TrtType::kINT8, TrtType::kINT8, half, half};
  for (int32_t i = 0; i < 5; ++i) EXPECT_EQ(output_types[i], expected[i]);

  Expressions e;
  const DimsExprs past = expressions_of({e.symbol("B"), e.symbol("Hkv"), e.symbol("C"), e.symbol("D")});
  const DimsExprs table = expressions_of({e.symbol("C"), e.symbol("P")});
  const DimsExprs scales = expressions_of({e.symbol("B"), e.symbol("Hkv"), e.symbol("C")});
  const DimsExprs inputs[] = {expressions_of({e.symbol("B"), e.symbol("S"), e.symbol("W")}),
                              expressions_of({e.symbol("B")}),
                              past,
                              past,
                              table,
                              table,
                              scales,
                              scales};
  DimsExprs outputs[5] = {};
  ASSERT_EQ(build_of(*plugin)->getOutputShapes(inputs, 8, nullptr, 0, outputs, 5, e), 0);
  EXPECT_EQ(texts(outputs[2]), (std::vector<std::string>{"B", "Hkv", "C", "D"}));
  EXPECT_EQ(texts(outputs[4]), (std::vector<std::string>{"B", "Hkv", "C"}));

  EXPECT_TRUE(supports_all(*plugin, node_of(attributes, 16, 64, 128)));
  EXPECT_EQ(configure(*plugin, node_of(attributes, 16, 64, 128)), 0) << recorder().errors;
  Node node = node_of(attributes, 16, 64, 128);
  node.tensors[2].desc.type = half;
  EXPECT_FALSE(supports_all(*plugin, node));
  EXPECT_NE(recorder().details.find("tensor 2 must be int8, got fp16"), std::string::npos) << recorder().details;
}

TEST_F(CachedAttentionPluginTest, InfersShapesAndTypes) {
  const auto plugin = create_plugin(kName, fields_of({8, 2}));
  Expressions e;
  const DimsExprs past = expressions_of({e.symbol("B"), e.symbol("Hkv"), e.symbol("C"), e.symbol("D")});
  const DimsExprs inputs[] = {expressions_of({e.symbol("B"), e.symbol("S"), e.symbol("W")}),
                              expressions_of({e.symbol("B")}), past, past};
  DimsExprs outputs[3] = {};
  ASSERT_EQ(build_of(*plugin)->getOutputShapes(inputs, 4, nullptr, 0, outputs, 3, e), 0);
  EXPECT_EQ(texts(outputs[0]), (std::vector<std::string>{"B", "S", "8 * D"}));
  EXPECT_EQ(texts(outputs[1]), (std::vector<std::string>{"B", "Hkv", "C", "D"}));
  EXPECT_EQ(texts(outputs[2]), (std::vector<std::string>{"B", "Hkv", "C", "D"}));
  const TrtType types[] = {TrtType::kBF16, TrtType::kINT64, TrtType::kBF16, TrtType::kBF16};
  TrtType output_types[3] = {};
  ASSERT_EQ(build_of(*plugin)->getOutputDataTypes(output_types, 3, types, 4), 0);
  for (const TrtType type : output_types) EXPECT_EQ(type, TrtType::kBF16);
  EXPECT_NE(build_of(*plugin)->getOutputDataTypes(output_types, 3, types, 3), 0) << "an input is missing";
  EXPECT_NE(recorder().errors.find("expected 4 inputs"), std::string::npos) << recorder().errors;
}

TEST_F(CachedAttentionPluginTest, TakesTheTypesOfItsInputs) {
  const auto plugin = create_plugin(kName, fields_of(kEverything));
  EXPECT_TRUE(supports_all(*plugin, node_of(kEverything, 16, 64, 128)));
  EXPECT_TRUE(supports_all(*plugin, node_of(kEverything, 16, 64, 128, TrtType::kBF16)));
  EXPECT_FALSE(supports_all(*plugin, node_of(kEverything, 16, 64, 128, TrtType::kFLOAT)));
  Node node = node_of(kEverything, 16, 64, 128);
  node.tensors[1].desc.type = TrtType::kINT32;
  EXPECT_FALSE(supports_all(*plugin, node));
  EXPECT_NE(recorder().details.find("tensor 1 must be int64, got int32"), std::string::npos) << recorder().details;
  node = node_of(kEverything, 16, 64, 128);
  node.tensors[8].desc.type = TrtType::kHALF;
  EXPECT_FALSE(supports_all(*plugin, node));
  EXPECT_NE(recorder().details.find("tensor 8 must be fp32, got fp16"), std::string::npos) << recorder().details;
}

TEST_F(CachedAttentionPluginTest, ConfiguresOnlyShapesThatFit) {
  const Attributes attributes = {8, 2, 128};
  const auto refused = [&](const Node& node, const std::string& reason) {
    recorder().errors.clear();
    const auto plugin = create_plugin(kName, fields_of(attributes));
    return configure(*plugin, node) != 0 && recorder().errors.find(reason) != std::string::npos;
  };
  const auto plugin = create_plugin(kName, fields_of(attributes));
  EXPECT_EQ(configure(*plugin, node_of(attributes, 4096, 128, 4096)), 0) << recorder().errors;
  Node node = node_of(attributes, 16, 128, 256);
  node.tensors[4].desc.dims = dims({255, 64});
  EXPECT_TRUE(refused(node, "cosines and sines must have shape [at least 256, 64]")) << recorder().errors;
  node = node_of(attributes, 16, 128, 256);
  node.tensors[3].desc.dims = dims({1, 2, 128, 128});
  EXPECT_TRUE(refused(node, "past_key and past_value must have shape [1, 2, 256, 128]")) << recorder().errors;
  EXPECT_TRUE(refused(node_of({8, 2, 72}, 16, 72, 256), "head sizes with kernels")) << recorder().errors;
}

TEST_F(CachedAttentionPluginTest, WorkspaceIsKnownWithoutAGpu) {
  const Attributes attributes = {32, 8, 128};
  const auto plugin = create_plugin(kName, fields_of(attributes));
  const size_t decode = workspace_bytes(*plugin, node_of(attributes, 1, 128, 4096));
  const size_t prefill = workspace_bytes(*plugin, node_of(attributes, 4096, 128, 4096));
  EXPECT_GT(decode, 0u);
  EXPECT_GE(prefill, size_t{4096} * 32 * 128 * 2) << "prepared queries";
  EXPECT_LE(prefill, size_t{64} << 20);
  EXPECT_EQ(workspace_bytes(*plugin, node_of(attributes, 16, 72, 4096)), 0u) << "no kernel";
}

TEST_F(CachedAttentionPluginTest, SerializesEveryFieldAndClonesShareNothing) {
  for (const Attributes& attributes : {kEverything, kWithEnds}) {
    const Fields fields = fields_of(attributes);
    expect_serialized(*create_plugin(kName, fields), kName, fields);
  }
}

// --- With a GPU ---

template <typename T>
double rounded(double value) {
  return static_cast<double>(static_cast<float>(static_cast<T>(static_cast<float>(value))));
}

class CachedAttentionPluginGpuTest : public PluginGpuTest {
 protected:
  // One call in place, one where the present is other memory, one captured in a graph.
  template <typename T>
  void check(const Attributes& a, int tokens, int head_dim, int capacity, int64_t position) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens at " + std::to_string(position) + ", heads of " +
                 std::to_string(head_dim));
    const AttentionProblem p = {1,
                                tokens,
                                a.num_heads,
                                a.num_kv_heads,
                                head_dim,
                                capacity,
                                a.rotary_dim,
                                a.window,
                                a.scale,
                                a.softcap,
                                a.clip,
                                a.norm_eps,
                                a.has_norms != 0,
                                a.interleaved != 0,
                                a.has_alibi != 0,
                                TrtTypeOf<T>::value == TrtType::kHALF ? DataType::kHalf : DataType::kBFloat16,
                                CacheType::kAsActivations,
                                a.has_visible_end != 0};
    std::mt19937 random(test_seed());
    const auto draw = [&](size_t count, float mean, float deviation) {
      return random_normal<T>(count, mean, deviation, random);
    };
    const size_t width = static_cast<size_t>(p.heads + 2 * p.kv_heads) * head_dim;
    const size_t cached = static_cast<size_t>(p.kv_heads) * capacity * head_dim;
    const size_t table = static_cast<size_t>(capacity) * (p.rotary_dim / 2), gains = p.has_norms ? head_dim : 0;
    const std::vector<T> qkv = draw(tokens * width, 0.f, 1.f), cos = draw(table, 0.f, 0.7f),
                         sin = draw(table, 0.f, 0.7f), query_norm = draw(gains, 1.f, 0.2f),
                         key_norm = draw(gains, 1.f, 0.2f), keys = draw(cached, 0.f, 1.f),
                         values = draw(cached, 0.f, 1.f);
    std::vector<float> slopes(p.has_alibi ? p.heads : 0);
    for (size_t i = 0; i < slopes.size(); ++i) slopes[i] = std::exp2(-static_cast<float>(i + 1));
    std::vector<int64_t> ends(p.has_visible_end ? capacity : 0);  // all new tokens see each other
    for (int64_t slot = 0; slot < static_cast<int64_t>(ends.size()); ++slot) {
      ends[slot] = slot < position ? slot : std::max(slot, position + tokens - 1);
    }
    const AttentionReference want = attention_reference(
        p, widened(qkv), {position}, widened(cos), widened(sin), widened(query_norm), widened(key_norm),
        std::vector<double>(slopes.begin(), slopes.end()), widened(keys), widened(values), rounded<T>, ends);

    const DeviceArray<T> d_qkv(qkv), d_cos(cos), d_sin(sin), d_query_norm(query_norm), d_key_norm(key_norm);
    const DeviceArray<T> y(static_cast<size_t>(tokens) * p.heads * head_dim);
    const DeviceArray<int64_t> d_position(std::vector<int64_t>{position}), d_ends(ends);
    const DeviceArray<float> d_slopes(slopes);
    EnginePlugin plugin(kName, fields_of(a), node_of(a, tokens, head_dim, capacity, TrtTypeOf<T>::value));
    for (const int way : {0, 1, 2}) {
      const DeviceArray<T> past_keys(keys), past_values(values), other_keys(cached), other_values(cached);
      std::vector<const void*> inputs = {d_qkv.get(), d_position.get(), past_keys.get(), past_values.get()};
      if (p.rotary_dim != 0) inputs.insert(inputs.end(), {d_cos.get(), d_sin.get()});
      if (p.has_norms) inputs.insert(inputs.end(), {d_query_norm.get(), d_key_norm.get()});
      if (p.has_alibi) inputs.push_back(d_slopes.get());
      if (p.has_visible_end) inputs.push_back(d_ends.get());
      const DeviceArray<T>& present_keys = way == 1 ? other_keys : past_keys;
      const DeviceArray<T>& present_values = way == 1 ? other_values : past_values;
      const std::vector<void*> outputs = {y.get(), present_keys.get(), present_values.get()};
      ASSERT_CUDA(cudaMemset(y.get(), 0xff, y.host().size() * sizeof(T)));  // NaN
      way == 2 ? plugin.run_in_graph(inputs, outputs) : plugin.run(inputs, outputs);
      EXPECT_LT(relative_error(widened(y.host()), want.y), TrtTypeOf<T>::tolerance);
      EXPECT_LT(relative_error(widened(present_keys.host()), want.keys), TrtTypeOf<T>::tolerance / 2);
      EXPECT_LT(relative_error(widened(present_values.host()), want.values), 1e-9);
      if (way == 1) {
        EXPECT_EQ(widened(past_values.host()), widened(values)) << "the past was written";
      }
    }
  }
};

TEST_F(CachedAttentionPluginGpuTest, ComputesDecodingAndPrefill) {
  for (const int tokens : {1, 3, 12, 40}) {
    check<__half>({8, 2, 128}, tokens, 128, 300, 150);
    check<__nv_bfloat16>({9, 3, 64}, tokens, 64, 200, 0);
    check<__half>(kEverything, tokens, 80, 200, 120);
    check<__half>(kWithEnds, tokens, 256, 200, 120);
    check<__nv_bfloat16>(kWithEnds, tokens, 64, 200, 0);
  }
}

// A cache of codes, updated in place, holds the same numbers as one of the call's type when both begin empty, except
// for quantization.
TEST_F(CachedAttentionPluginGpuTest, ACacheOfCodesIsWrittenAndRead) {
  const int tokens = 40, head_dim = 64, capacity = 100;
  Attributes a = {8, 2};
  std::mt19937 random(test_seed());
  const std::vector<__half> qkv = random_normal<__half>(size_t{12} * tokens * head_dim, 0.f, 1.f, random);
  const size_t slots = size_t{2} * capacity, outputs = size_t{8} * tokens * head_dim;
  const DeviceArray<__half> d_qkv(qkv), plain(outputs), coded(outputs);
  const DeviceArray<int64_t> position(std::vector<int64_t>{0});
  {
    const DeviceArray<__half> keys(slots * head_dim), values(slots * head_dim);
    EnginePlugin plugin(kName, fields_of(a), node_of(a, tokens, head_dim, capacity));
    plugin.run({d_qkv.get(), position.get(), keys.get(), values.get()}, {plain.get(), keys.get(), values.get()});
  }
  a.has_cache_scales = 1;
  const std::vector<int8_t> no_codes(slots * head_dim);
  const std::vector<__half> no_scales(slots);
  const DeviceArray<int8_t> keys(no_codes), values(no_codes);
  const DeviceArray<__half> key_scales(no_scales), value_scales(no_scales);
  EnginePlugin plugin(kName, fields_of(a), node_of(a, tokens, head_dim, capacity));
  plugin.run({d_qkv.get(), position.get(), keys.get(), values.get(), key_scales.get(), value_scales.get()},
             {coded.get(), keys.get(), values.get(), key_scales.get(), value_scales.get()});
  const double error = relative_error(widened(coded.host()), widened(plain.host()));
  EXPECT_GT(error, 1e-4) << "nothing was quantized";
  EXPECT_LT(error, 2e-2);
  EXPECT_GT(static_cast<float>(key_scales.host()[0]), 0.f);
  EXPECT_EQ(static_cast<float>(key_scales.host()[tokens]), 0.f) << "a slot beyond the new ones was written";
}

TEST_F(CachedAttentionPluginGpuTest, ReportsALaunchThatFails) {
  EnginePlugin plugin(kName, fields_of({8, 2}), node_of({8, 2}, 1, 64, 64));
  EXPECT_NE(plugin.enqueue(std::vector<const void*>(4), std::vector<void*>(3)), 0);
  EXPECT_NE(recorder().errors.find("CachedAttention with 1 rows of 768: launch failed"), std::string::npos)
      << recorder().errors;
}

}  // namespace
}  // namespace awq2trt
