// The plugin as TensorRT sees it: the library is loaded from its file, and every method is called in TensorRT's order
// with TensorRT's data structures. Whatever needs no GPU runs everywhere; the rest skips without one, and fails instead
// with AWQ2TRT_REQUIRE_GPU=1. The reference is the CPU's (kernels/w4a16_linear/reference.h), in fp64.
#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <NvInferRuntime.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/w4a16_linear/reference.h"
#include "ops/w4a16_linear.h"

namespace awq2trt {
namespace {

using namespace nvinfer1;
using TrtType = nvinfer1::DataType;

// Keeps what the plugins say.
class Recorder final : public ILogger, public ILoggerFinder {
 public:
  void log(Severity severity, AsciiChar const* message) noexcept override {
    if (severity <= Severity::kERROR) errors += std::string(message) + "\n";
    if (severity == Severity::kVERBOSE) details += std::string(message) + "\n";
  }
  ILogger* findLogger() override { return this; }
  std::string errors, details;
};

// The library, loaded once.
class Library {
 public:
  static Library& get() {
    static Library library;
    return library;
  }
  IPluginCreatorV3One* creator() const { return creator_; }
  Recorder& recorder() { return recorder_; }

 private:
  Library() {
    const char* const override_path = std::getenv("AWQ2TRT_PLUGIN_PATH");  // the build machine is not always the test's
    void* const handle = dlopen(override_path != nullptr ? override_path : PLUGIN_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
    using SetLoggerFinder = void (*)(ILoggerFinder*);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
    const auto set_logger_finder = reinterpret_cast<SetLoggerFinder>(dlsym(handle, "setLoggerFinder"));
    if (get_creators == nullptr || set_logger_finder == nullptr) throw std::runtime_error("an entry point is missing");
    set_logger_finder(&recorder_);
    int32_t count = 0;
    IPluginCreatorInterface* const* const creators = get_creators(count);
    if (count != 1) throw std::runtime_error("expected one creator");
    creator_ = static_cast<IPluginCreatorV3One*>(creators[0]);
  }
  Recorder recorder_;
  IPluginCreatorV3One* creator_ = nullptr;
};

struct Attributes {
  int32_t group_size, has_zeros, has_bias;
};

std::unique_ptr<IPluginV3> create(Attributes attributes, TensorRTPhase phase = TensorRTPhase::kBUILD) {
  const PluginField fields[] = {{w4a16_linear::kGroupSize, &attributes.group_size, PluginFieldType::kINT32, 1},
                                {w4a16_linear::kHasZeros, &attributes.has_zeros, PluginFieldType::kINT32, 1},
                                {w4a16_linear::kHasBias, &attributes.has_bias, PluginFieldType::kINT32, 1}};
  const PluginFieldCollection collection = {3, fields};
  return std::unique_ptr<IPluginV3>(Library::get().creator()->createPlugin("node", &collection, phase));
}

IPluginV3OneBuild* build_of(IPluginV3& plugin) {
  return static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime* runtime_of(IPluginV3& plugin) {
  return static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

Dims dims(std::initializer_list<int64_t> values) {
  Dims result = {};
  for (const int64_t value : values) result.d[result.nbDims++] = value;
  return result;
}

// The tensors of one node, inputs then output, as a network has them.
struct Node {
  std::vector<DynamicPluginTensorDesc> tensors;
  int32_t inputs() const { return static_cast<int32_t>(tensors.size()) - 1; }
  const DynamicPluginTensorDesc* output() const { return &tensors.back(); }
};

DynamicPluginTensorDesc tensor(TrtType type, Dims shape, Dims max) {
  DynamicPluginTensorDesc description = {};
  description.desc = {shape, type, TensorFormat::kLINEAR, 1.f};
  description.min = description.max = description.opt = max;
  return description;
}

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

bool supports_all(IPluginV3& plugin, const Node& node) {
  for (int32_t i = 0; i <= node.inputs(); ++i) {
    if (!build_of(plugin)->supportsFormatCombination(i, node.tensors.data(), node.inputs(), 1)) return false;
  }
  return true;
}

class W4A16LinearPluginTest : public testing::Test {
 protected:
  void SetUp() override { recorder().errors.clear(), recorder().details.clear(); }
  static Recorder& recorder() { return Library::get().recorder(); }
};

TEST_F(W4A16LinearPluginTest, CreatorNamesTheOp) {
  IPluginCreatorV3One* const creator = Library::get().creator();
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
      Library::get().creator()->createPlugin("node", &collection, TensorRTPhase::kBUILD));
  EXPECT_NE(plugin, nullptr);
}

TEST_F(W4A16LinearPluginTest, RefusesBadAttributesWithTheReason) {
  EXPECT_EQ(create({0, 0, 0}), nullptr);
  EXPECT_NE(recorder().errors.find("group_size must be at least 1, got 0"), std::string::npos) << recorder().errors;
  EXPECT_NE(recorder().errors.find("cannot create the plugin of node 'node'"), std::string::npos);
  EXPECT_EQ(create({128, 2, 0}), nullptr);
  EXPECT_NE(recorder().errors.find("has_zeros must be 0 or 1, got 2"), std::string::npos) << recorder().errors;
  const PluginFieldCollection none = {0, nullptr};
  EXPECT_EQ(Library::get().creator()->createPlugin("node", &none, TensorRTPhase::kBUILD), nullptr);
  EXPECT_NE(recorder().errors.find("group_size is missing"), std::string::npos) << recorder().errors;
}

TEST_F(W4A16LinearPluginTest, InfersShapeAndType) {
  const auto plugin = create({128, 0, 0});
  struct Constant final : IDimensionExpr {};
  std::vector<const IDimensionExpr*> symbols;  // opaque: the plugin must pass them on, not look inside
  for (uintptr_t i = 1; i <= 7; ++i) symbols.push_back(reinterpret_cast<const IDimensionExpr*>(i * 16));
  DimsExprs inputs[3] = {};
  inputs[0].nbDims = 3, inputs[0].d[0] = symbols[0], inputs[0].d[1] = symbols[1], inputs[0].d[2] = symbols[2];
  inputs[1].nbDims = 2, inputs[1].d[0] = symbols[3], inputs[1].d[1] = symbols[4];
  inputs[2].nbDims = 2, inputs[2].d[0] = symbols[5], inputs[2].d[1] = symbols[6];
  DimsExprs output = {};
  alignas(16) static char no_builder[64];
  auto& builder = reinterpret_cast<IExprBuilder&>(no_builder);
  ASSERT_EQ(build_of(*plugin)->getOutputShapes(inputs, 3, nullptr, 0, &output, 1, builder), 0);
  ASSERT_EQ(output.nbDims, 3);
  EXPECT_EQ(output.d[0], symbols[0]);
  EXPECT_EQ(output.d[1], symbols[1]);
  EXPECT_EQ(output.d[2], symbols[3]) << "N of the codes";

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
  node.tensors[0].desc.format = TensorFormat::kCHW2;
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
  const auto plugin = create({64, 1, 0});
  const std::unique_ptr<IPluginV3> copy(plugin->clone());
  const PluginFieldCollection& original = *runtime_of(*plugin)->getFieldsToSerialize();
  const PluginFieldCollection& copied = *runtime_of(*copy)->getFieldsToSerialize();
  ASSERT_EQ(original.nbFields, 3);
  ASSERT_EQ(copied.nbFields, 3);
  const int32_t expected[] = {64, 1, 0};
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(original.fields[i].type, PluginFieldType::kINT32) << "the C++ type of the value, and no wider";
    EXPECT_EQ(*static_cast<const int32_t*>(original.fields[i].data), expected[i]);
    EXPECT_EQ(*static_cast<const int32_t*>(copied.fields[i].data), expected[i]);
    EXPECT_NE(original.fields[i].data, copied.fields[i].data);
  }
  const std::unique_ptr<IPluginV3> restored(
      Library::get().creator()->createPlugin("node", &original, TensorRTPhase::kRUNTIME));
  ASSERT_NE(restored, nullptr);
  const PluginFieldCollection& again = *runtime_of(*restored)->getFieldsToSerialize();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(*static_cast<const int32_t*>(again.fields[i].data), expected[i]);
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

// Device memory with a copy of host values.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host) : bytes_(host.size() * sizeof(T)) {
    if (cudaMalloc(&data_, bytes_ + 1) != cudaSuccess) data_ = nullptr;
    cudaMemcpy(data_, host.data(), bytes_, cudaMemcpyHostToDevice);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  void* get() const { return data_; }
  size_t bytes() const { return bytes_; }
  std::vector<T> host() const {
    std::vector<T> values(bytes_ / sizeof(T));
    cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

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

  static std::vector<double> widened(const std::vector<__half>& values) {
    std::vector<double> result;
    for (const __half value : values) result.push_back(__half2float(value));
    return result;
  }

  double relative_error(const std::vector<__half>& y) const {
    const std::vector<double> weights =
        dequantize_weights(problem, codes.data(), widened(scales).data(), problem.has_zeros ? zeros.data() : nullptr);
    const std::vector<double> expected =
        linear_reference(problem, widened(x).data(), weights, problem.has_bias ? widened(bias).data() : nullptr);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      difference += std::pow(__half2float(y[i]) - expected[i], 2);
      norm += expected[i] * expected[i];
    }
    return std::sqrt(difference / norm);
  }

  GemmProblem problem;
  std::vector<__half> x, scales, bias;
  std::vector<uint8_t> codes, zeros;
};

class W4A16LinearPluginGpuTest : public W4A16LinearPluginTest {
 protected:
  void SetUp() override {
    W4A16LinearPluginTest::SetUp();
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return;
    const char* const required = std::getenv("AWQ2TRT_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1") FAIL() << "no CUDA device, and AWQ2TRT_REQUIRE_GPU=1";
    GTEST_SKIP() << "no CUDA device";
  }
};

// creator -> createPlugin(build) -> configurePlugin -> getFieldsToSerialize -> createPlugin(runtime) -> attachToContext
// -> onShapeChange -> enqueue on a stream, then the same captured in a CUDA graph and replayed.
void run_as_tensorrt_does(Attributes attributes, int m, int n, int k) {
  SCOPED_TRACE("M " + std::to_string(m) + " N " + std::to_string(n) + " K " + std::to_string(k) + " G " +
               std::to_string(attributes.group_size));
  const Node node = node_of(attributes, m, n, k);
  const auto built = create(attributes, TensorRTPhase::kBUILD);
  ASSERT_NE(built, nullptr);
  ASSERT_TRUE(supports_all(*built, node));
  ASSERT_EQ(build_of(*built)->configurePlugin(node.tensors.data(), node.inputs(), node.output(), 1), 0);
  const size_t workspace_bytes =
      build_of(*built)->getWorkspaceSize(node.tensors.data(), node.inputs(), node.output(), 1);

  const std::unique_ptr<IPluginV3> loaded(Library::get().creator()->createPlugin(
      "node", runtime_of(*built)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  ASSERT_NE(loaded, nullptr);
  const std::unique_ptr<IPluginV3> attached(runtime_of(*loaded)->attachToContext(nullptr));
  ASSERT_NE(attached, nullptr);

  std::vector<PluginTensorDesc> descriptions;
  for (const DynamicPluginTensorDesc& tensor : node.tensors) {
    descriptions.push_back(tensor.desc);
    descriptions.back().dims = tensor.max;
  }
  IPluginV3OneRuntime& runtime = *runtime_of(*attached);
  ASSERT_EQ(runtime.onShapeChange(descriptions.data(), node.inputs(), &descriptions.back(), 1), 0);

  const RandomNode host(attributes, m, n, k);
  const std::vector<__half> poison(static_cast<size_t>(m) * n, __float2half(NAN));
  const DeviceArray<__half> x(host.x), scales(host.scales), bias(host.bias), y(poison);
  const DeviceArray<uint8_t> codes(host.codes), zeros(host.zeros), workspace{std::vector<uint8_t>(workspace_bytes)};
  std::vector<const void*> inputs = {x.get(), codes.get(), scales.get()};
  if (attributes.has_zeros) inputs.push_back(zeros.get());
  if (attributes.has_bias) inputs.push_back(bias.get());
  void* const outputs[] = {y.get()};
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  const auto enqueue = [&] {
    return runtime.enqueue(descriptions.data(), &descriptions.back(), inputs.data(), outputs, workspace.get(), stream);
  };

  ASSERT_EQ(enqueue(), 0);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_LT(host.relative_error(y.host()), 1e-3) << "on a stream";

  ASSERT_EQ(cudaMemcpy(y.get(), poison.data(), y.bytes(), cudaMemcpyHostToDevice), cudaSuccess);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_EQ(enqueue(), 0);
  ASSERT_EQ(enqueue(), 0);  // twice: overlapped launches meet in a graph
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_LT(host.relative_error(y.host()), 1e-3) << "in a CUDA graph";
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(W4A16LinearPluginGpuTest, ComputesTheLayer) {
  for (const int32_t group_size : {32, 128, 576}) {
    for (const int32_t flags : {0, 1, 2, 3}) {
      for (const int m : {1, 7, 40}) run_as_tensorrt_does({group_size, flags & 1, flags >> 1}, m, 131, 576);
    }
  }
  run_as_tensorrt_does({128, 1, 1}, 12, 64, 4096);  // splits K, so it uses the workspace
  run_as_tensorrt_does({48, 1, 1}, 3, 64, 576);     // the general kernel
}

TEST_F(W4A16LinearPluginGpuTest, ReportsALaunchThatFails) {
  const Attributes attributes = {128, 0, 0};
  const Node node = node_of(attributes, 1, 64, 256);
  const auto plugin = create(attributes, TensorRTPhase::kRUNTIME);
  std::vector<PluginTensorDesc> descriptions;
  for (const DynamicPluginTensorDesc& tensor : node.tensors) {
    descriptions.push_back(tensor.desc);
    descriptions.back().dims = tensor.max;
  }
  ASSERT_EQ(runtime_of(*plugin)->onShapeChange(descriptions.data(), 3, &descriptions.back(), 1), 0);
  const void* const inputs[3] = {};
  void* const outputs[1] = {};
  EXPECT_NE(runtime_of(*plugin)->enqueue(descriptions.data(), &descriptions.back(), inputs, outputs, nullptr, nullptr),
            0);
  EXPECT_NE(recorder().errors.find("launch failed"), std::string::npos) << recorder().errors;
}

}  // namespace
}  // namespace awq2trt
