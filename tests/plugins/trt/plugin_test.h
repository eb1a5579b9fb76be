// Shared by tests of the plugins: the library, loaded from its file as TensorRT does, and TensorRT's calls to a plugin,
// in TensorRT's order and with its data structures. Tests that need no GPU run everywhere; the rest skips without one,
// and fails instead with AWQ2TRT_REQUIRE_GPU=1.
#pragma once

#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <NvInferRuntime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/gpu_test.h"

namespace awq2trt {

using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::IPluginV3;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorRTPhase;
using TrtType = nvinfer1::DataType;

// Keeps the plugins' messages.
class Recorder final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
    if (severity <= Severity::kERROR) errors += std::string(message) + "\n";
    if (severity == Severity::kVERBOSE) details += std::string(message) + "\n";
  }
  nvinfer1::ILogger* findLogger() override { return this; }
  std::string errors, details;
};

// The library, loaded once.
class Library {
 public:
  static Library& get() {
    static Library library;
    return library;
  }

  nvinfer1::IPluginCreatorV3One* creator(const std::string& name) const {
    for (int32_t i = 0; i < creator_count_; ++i) {
      auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators_[i]);
      if (name == creator->getPluginName()) return creator;
    }
    throw std::runtime_error("no creator of " + name);
  }
  int32_t creator_count() const { return creator_count_; }
  Recorder& recorder() { return recorder_; }

 private:
  Library() {
    const char* const override_path =
        std::getenv("AWQ2TRT_PLUGIN_PATH");  // tests may run on another machine than the build
    void* const handle = dlopen(override_path != nullptr ? override_path : PLUGIN_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
    using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
    const auto set_logger_finder = reinterpret_cast<SetLoggerFinder>(dlsym(handle, "setLoggerFinder"));
    if (get_creators == nullptr || set_logger_finder == nullptr) throw std::runtime_error("an entry point is missing");
    set_logger_finder(&recorder_);
    creators_ = get_creators(creator_count_);
  }

  Recorder recorder_;
  nvinfer1::IPluginCreatorInterface* const* creators_ = nullptr;
  int32_t creator_count_ = 0;
};

// --- Attributes ---

// Attributes of a node, as ONNX's parser passes them: integers of 32 bits and floats.
class Fields {
 public:
  Fields() = default;
  Fields(Fields&&) = default;
  Fields& operator=(Fields&&) = delete;

  Fields& integer(const char* name, int32_t value) {
    integers_.push_back(value);
    fields_.push_back({name, &integers_.back(), PluginFieldType::kINT32, 1});
    return *this;
  }
  Fields& number(const char* name, float value) {
    floats_.push_back(value);
    fields_.push_back({name, &floats_.back(), PluginFieldType::kFLOAT32, 1});
    return *this;
  }
  // Valid as long as the fields exist.
  PluginFieldCollection collection() const& { return {static_cast<int32_t>(fields_.size()), fields_.data()}; }
  PluginFieldCollection collection() const&& = delete;

 private:
  std::deque<int32_t> integers_;  // which do not move
  std::deque<float> floats_;
  std::vector<PluginField> fields_;
};

inline std::unique_ptr<IPluginV3> create_plugin(const std::string& name, const Fields& fields,
                                                TensorRTPhase phase = TensorRTPhase::kBUILD) {
  const PluginFieldCollection collection = fields.collection();
  return std::unique_ptr<IPluginV3>(Library::get().creator(name)->createPlugin("node", &collection, phase));
}

inline nvinfer1::IPluginV3OneBuildV2* build_of(IPluginV3& plugin) {
  return static_cast<nvinfer1::IPluginV3OneBuildV2*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
}
inline nvinfer1::IPluginV3OneRuntime* runtime_of(IPluginV3& plugin) {
  return static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

// Checks that every field of `plugin`, and of the plugin that an engine restores from it, is one of `fields` with its
// type and bytes.
inline void expect_serialized(IPluginV3& plugin, const std::string& name, const Fields& fields) {
  const PluginFieldCollection expected = fields.collection();
  const std::unique_ptr<IPluginV3> copy(plugin.clone());
  const std::unique_ptr<IPluginV3> restored(Library::get().creator(name)->createPlugin(
      "node", runtime_of(*copy)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  ASSERT_NE(restored, nullptr);
  for (IPluginV3* const each : {&plugin, copy.get(), restored.get()}) {
    const PluginFieldCollection& stored = *runtime_of(*each)->getFieldsToSerialize();
    ASSERT_EQ(stored.nbFields, expected.nbFields);
    for (int32_t i = 0; i < expected.nbFields; ++i) {
      EXPECT_STREQ(stored.fields[i].name, expected.fields[i].name);
      EXPECT_EQ(stored.fields[i].type, expected.fields[i].type) << "the C++ type of the value, and no wider";
      EXPECT_EQ(std::memcmp(stored.fields[i].data, expected.fields[i].data, 4), 0) << stored.fields[i].name;
      EXPECT_TRUE(each == &plugin ||
                  stored.fields[i].data != runtime_of(plugin)->getFieldsToSerialize()->fields[i].data);
    }
  }
}

// --- Tensors of a network ---

inline nvinfer1::Dims dims(std::initializer_list<int64_t> values) {
  nvinfer1::Dims result = {};
  for (const int64_t value : values) result.d[result.nbDims++] = value;
  return result;
}

inline DynamicPluginTensorDesc tensor(TrtType type, nvinfer1::Dims shape, nvinfer1::Dims max) {
  DynamicPluginTensorDesc description = {};
  description.desc = {shape, type, nvinfer1::TensorFormat::kLINEAR, 1.f};
  description.min = description.max = description.opt = max;
  return description;
}

inline DynamicPluginTensorDesc tensor(TrtType type, std::initializer_list<int64_t> sizes) {
  return tensor(type, dims(sizes), dims(sizes));
}

// The tensors of one node, inputs then outputs.
struct Node {
  std::vector<DynamicPluginTensorDesc> tensors;
  int32_t outputs = 1;

  int32_t inputs() const { return static_cast<int32_t>(tensors.size()) - outputs; }
  const DynamicPluginTensorDesc* output() const { return &tensors[inputs()]; }

  // At the largest shapes, as an engine calls the plugin.
  std::vector<PluginTensorDesc> largest() const {
    std::vector<PluginTensorDesc> descriptions;
    for (const DynamicPluginTensorDesc& tensor : tensors) {
      descriptions.push_back(tensor.desc);
      descriptions.back().dims = tensor.max;
    }
    return descriptions;
  }
};

inline bool supports_all(IPluginV3& plugin, const Node& node) {
  for (size_t i = 0; i < node.tensors.size(); ++i) {
    const auto position = static_cast<int32_t>(i);
    if (!build_of(plugin)->supportsFormatCombination(position, node.tensors.data(), node.inputs(), node.outputs)) {
      return false;
    }
  }
  return true;
}

inline int32_t configure(IPluginV3& plugin, const Node& node) {
  return build_of(plugin)->configurePlugin(node.tensors.data(), node.inputs(), node.output(), node.outputs);
}

inline size_t workspace_bytes(IPluginV3& plugin, const Node& node) {
  return build_of(plugin)->getWorkspaceSize(node.tensors.data(), node.inputs(), node.output(), node.outputs);
}

// TensorRT's arithmetic on lengths of axes, as text: the test sees the expressions that a plugin makes, and the plugin
// cannot read values from them.
class Expressions final : public nvinfer1::IExprBuilder {
 public:
  Expressions() { mImpl = &builder_; }

  const IDimensionExpr* symbol(const std::string& text) { return builder_.add(text, -1); }
  const IDimensionExpr* number(int64_t value) { return builder_.constant(value); }
  static std::string text(const IDimensionExpr* expression) { return static_cast<const Expression*>(expression)->text; }

 private:
  struct Expression final : public IDimensionExpr {
    Expression(std::string text, int64_t value) : text(std::move(text)), impl(value) { mImpl = &impl; }
    struct Impl final : public nvinfer1::apiv::VDimensionExpr {
      explicit Impl(int64_t value) : value(value) {}
      bool isConstant() const override { return value >= 0; }
      int64_t getConstantValue() const override { return value; }
      bool isSizeTensor() const override { return false; }
      int64_t value;
    };
    std::string text;
    Impl impl;
  };

  struct Builder final : public nvinfer1::apiv::VExprBuilder {
    const IDimensionExpr* add(const std::string& text, int64_t value) {
      expressions.push_back(std::make_unique<Expression>(text, value));
      return expressions.back().get();
    }
    const IDimensionExpr* constant(int64_t value) override { return add(std::to_string(value), value); }
    const IDimensionExpr* operation(nvinfer1::DimensionOperation operation, const IDimensionExpr& first,
                                    const IDimensionExpr& second) override {
      const char* const sign = operation == nvinfer1::DimensionOperation::kPROD        ? " * "
                               : operation == nvinfer1::DimensionOperation::kFLOOR_DIV ? " / "
                                                                                       : " ? ";
      return add(text(&first) + sign + text(&second), -1);
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
      return nullptr;
    }
    std::vector<std::unique_ptr<Expression>> expressions;
  };

  Builder builder_;
};

inline DimsExprs expressions_of(std::initializer_list<const IDimensionExpr*> sizes) {
  DimsExprs result = {};
  for (const IDimensionExpr* const size : sizes) result.d[result.nbDims++] = size;
  return result;
}

inline std::vector<std::string> texts(const DimsExprs& sizes) {
  std::vector<std::string> result;
  for (int32_t i = 0; i < sizes.nbDims; ++i) result.push_back(Expressions::text(sizes.d[i]));
  return result;
}

// --- In an engine ---

class PluginTest : public GpuTest {
 protected:
  void SetUp() override { recorder().errors.clear(), recorder().details.clear(); }
  static Recorder& recorder() { return Library::get().recorder(); }
};

class PluginGpuTest : public PluginTest {
 protected:
  void SetUp() override {
    PluginTest::SetUp();
    GpuTest::SetUp();
  }
};

// A plugin after its way through TensorRT: created, configured and serialized at build; then created from the engine's
// data, attached to a context, and given its shapes. Ready to be enqueued.
class EnginePlugin {
 public:
  EnginePlugin(const std::string& name, const Fields& fields, const Node& node) : node_(node), all_(node.largest()) {
    const std::unique_ptr<IPluginV3> built = create_plugin(name, fields);
    if (built == nullptr) throw std::runtime_error("not created: " + Library::get().recorder().errors);
    if (!supports_all(*built, node)) throw std::runtime_error("unsupported: " + Library::get().recorder().details);
    if (configure(*built, node) != 0) throw std::runtime_error("refused: " + Library::get().recorder().errors);
    workspace_ = std::make_unique<DeviceArray<uint8_t>>(workspace_bytes(*built, node));
    const std::unique_ptr<IPluginV3> loaded(Library::get().creator(name)->createPlugin(
        "node", runtime_of(*built)->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    attached_.reset(runtime_of(*loaded)->attachToContext(nullptr));
    if (cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) != cudaSuccess)
      throw std::runtime_error("no stream");
    if (runtime_of(*attached_)->onShapeChange(all_.data(), node.inputs(), &all_[node.inputs()], node.outputs) != 0) {
      throw std::runtime_error("shapes refused: " + Library::get().recorder().errors);
    }
  }
  ~EnginePlugin() { cudaStreamDestroy(stream_); }
  EnginePlugin(const EnginePlugin&) = delete;
  EnginePlugin& operator=(const EnginePlugin&) = delete;

  int32_t enqueue(const std::vector<const void*>& inputs, const std::vector<void*>& outputs) {
    return runtime_of(*attached_)
        ->enqueue(all_.data(), &all_[node_.inputs()], inputs.data(), outputs.data(), workspace_->get(), stream_);
  }

  // Enqueues on a stream and waits.
  void run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs) {
    ASSERT_EQ(enqueue(inputs, outputs), 0) << Library::get().recorder().errors;
    ASSERT_CUDA(cudaStreamSynchronize(stream_));
  }

  // The same, captured in a CUDA graph and replayed once; twice in it, so that overlapped launches meet.
  void run_in_graph(const std::vector<const void*>& inputs, const std::vector<void*>& outputs) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
    for (int call = 0; call < 2; ++call) ASSERT_EQ(enqueue(inputs, outputs), 0) << Library::get().recorder().errors;
    ASSERT_CUDA(cudaStreamEndCapture(stream_, &graph));
    ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    ASSERT_CUDA(cudaGraphLaunch(executable, stream_));
    ASSERT_CUDA(cudaStreamSynchronize(stream_));
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }

 private:
  const Node node_;
  const std::vector<PluginTensorDesc> all_;
  std::unique_ptr<DeviceArray<uint8_t>> workspace_;
  std::unique_ptr<IPluginV3> attached_;
  cudaStream_t stream_ = nullptr;
};

// --- Numbers ---

template <typename T>
struct TrtTypeOf;
template <>
struct TrtTypeOf<__half> {
  static constexpr TrtType value = TrtType::kHALF;
  static constexpr double tolerance =
      2e-3;  // error of a result rounded to the type, relative in the 2-norm, with a margin
};
template <>
struct TrtTypeOf<__nv_bfloat16> {
  static constexpr TrtType value = TrtType::kBF16;
  static constexpr double tolerance = 1.6e-2;
};

template <typename T>
std::vector<double> widened(const std::vector<T>& values) {
  std::vector<double> wide;
  for (const T& value : values) wide.push_back(static_cast<double>(static_cast<float>(value)));
  return wide;
}

inline double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace awq2trt
