// Makes any of our operators an IPluginV3: the operator's rules (ops/) answer TensorRT's questions, and its kernels
// (kernels/) compute.
//
// TensorRT's calls, in the order in which it makes them: a creator reads the node's attributes; at build the plugin
// says which types and shapes it takes and how much workspace; in an engine it chooses a kernel for the current shapes
// and enqueues it. Errors go to TensorRT's logger, and the call fails.
//
// In:  an `Operator`, a class of static members and nothing else:
//   kName, kVersion, kMaxInputs, kFields
//       Its name, the most inputs it can have, and its attributes (AttributeField[]).
//   Attributes, Problem, Config
//       Everything that a plugin consists of and an engine stores of it; a call's sizes; and how a call is computed.
//   output_count(attributes), check_attributes(attributes, error), check_inputs(attributes, count, error)
//   check_type(attributes, tensor, type, x_type, error)
//       For an input, or after the last input an output; x is the first input.
//   infer_shapes(attributes, inputs, outputs, builder, error)
//   describe_problem(attributes, shapes, x_type, problem, error)
//   workspace_bytes(problem)
//       As much as the largest problem of a profile and all smaller ones need on any device.
//   aliased_input(attributes, output)
//       The input whose memory an output is, and whose type it has; -1 for none: it has the type of the first input.
//   choose(problem, device), launch(attributes, problem, config, buffers, stream)
// Out: OperatorPlugin<Operator>, and OperatorCreator<Operator>, which makes it.
#pragma once

#include <cstdint>
#include <new>

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include "kernels/device/device.h"
#include "ops/operator.h"
#include "trt/logging.h"
#include "trt/translation.h"

namespace awq2trt {

// The device pointers of one call, as TensorRT passes them.
struct PluginBuffers {
  const void* const* inputs;
  void* const* outputs;
  void* workspace;
};

template <typename Operator>
class OperatorPlugin final : public nvinfer1::IPluginV3,
                             public nvinfer1::IPluginV3OneCore,
                             public nvinfer1::IPluginV3OneBuildV2,
                             public nvinfer1::IPluginV3OneRuntime {
  using TrtType = nvinfer1::DataType;
  using Severity = nvinfer1::ILogger::Severity;
  using Description = nvinfer1::PluginTensorDesc;
  using Descriptions = nvinfer1::DynamicPluginTensorDesc const*;

 public:
  using Attributes = typename Operator::Attributes;

  explicit OperatorPlugin(const Attributes& attributes) noexcept
      : attributes_(attributes), field_collection_{kFieldCount, fields_} {
    for (int32_t i = 0; i < kFieldCount; ++i) {
      const AttributeField& field = Operator::kFields[i];
      fields_[i] = {field.name, reinterpret_cast<const char*>(&attributes_) + field.offset, field.type, 1};
    }
  }
  // The serialized fields point into their own plugin's attributes.
  OperatorPlugin(const OperatorPlugin& other) noexcept : OperatorPlugin(other.attributes_) {}
  OperatorPlugin& operator=(const OperatorPlugin&) = delete;

  // --- IPluginV3 ---

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) OperatorPlugin(*this); }

  // --- IPluginV3OneCore ---

  nvinfer1::AsciiChar const* getPluginName() const noexcept override { return Operator::kName; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return Operator::kVersion; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kDomain; }

  // --- IPluginV3OneBuildV2 ---

  int32_t getNbOutputs() const noexcept override { return Operator::output_count(attributes_); }

  int32_t getAliasedInput(int32_t output) noexcept override { return Operator::aliased_input(attributes_, output); }

  int32_t getOutputDataTypes(TrtType* output_types, int32_t output_count, TrtType const* input_types,
                             int32_t input_count) const noexcept override {
    if (!has_counts(input_count, output_count)) return kFailure;
    for (int32_t i = 0; i < output_count; ++i) {
      const int32_t aliased = Operator::aliased_input(attributes_, i);
      output_types[i] = input_types[aliased < 0 ? kX : aliased];
    }
    return kSuccess;
  }

  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count, nvinfer1::DimsExprs const*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override {
    ErrorText error;
    return has_counts(input_count, output_count) &&
                   report(Operator::infer_shapes(attributes_, inputs, outputs, builder, &error), error)
               ? kSuccess
               : kFailure;
  }

  bool supportsFormatCombination(int32_t position, Descriptions tensors, int32_t input_count,
                                 int32_t output_count) noexcept override {
    if (!has_counts(input_count, output_count)) return false;
    const Description& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
      log(Severity::kVERBOSE, "%s: tensor %d must be in linear format", Operator::kName, position);
      return false;
    }
    const ElementType type = element_type(tensor.type), x_type = element_type(tensors[kX].desc.type);
    ErrorText error;
    const bool supported = check_activations(Operator::kName, kX, x_type, &error) &&
                           Operator::check_type(attributes_, position, type, x_type, &error);
    return report(supported, error, Severity::kVERBOSE);  // TensorRT is trying out formats
  }

  int32_t configurePlugin(Descriptions inputs, int32_t input_count, Descriptions,
                          int32_t output_count) noexcept override {
    Problem problem = {};
    return has_counts(input_count, output_count) && largest_problem(inputs, input_count, &problem) ? kSuccess
                                                                                                   : kFailure;
  }

  size_t getWorkspaceSize(Descriptions inputs, int32_t input_count, Descriptions,
                          int32_t output_count) const noexcept override {
    Problem problem = {};
    return has_counts(input_count, output_count) && largest_problem(inputs, input_count, &problem)
               ? Operator::workspace_bytes(problem)
               : 0;
  }

  // --- IPluginV3OneRuntime ---

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

  int32_t onShapeChange(Description const* inputs, int32_t input_count, Description const*,
                        int32_t output_count) noexcept override {
    if (!has_counts(input_count, output_count)) return kFailure;
    Shape shapes[Operator::kMaxInputs] = {};
    for (int32_t i = 0; i < input_count; ++i) shapes[i] = shape_of(inputs[i].dims);
    if (!describe(shapes, inputs[kX].type, &problem_)) return kFailure;
    Device device = {};
    const cudaError_t status = query_device(&device);
    if (status != cudaSuccess) {
      log(Severity::kERROR, "%s: cannot query the GPU: %s", Operator::kName, cudaGetErrorString(status));
      return kFailure;
    }
    config_ = Operator::choose(problem_, device);
    return kSuccess;
  }

  int32_t enqueue(Description const* inputs, Description const*, void const* const* input_data,
                  void* const* output_data, void* workspace, cudaStream_t stream) noexcept override {
    const PluginBuffers buffers = {input_data, output_data, workspace};
    const cudaError_t status = Operator::launch(attributes_, problem_, config_, buffers, stream);
    if (status == cudaSuccess) return kSuccess;
    const nvinfer1::Dims& x = inputs[kX].dims;
    log(Severity::kERROR, "%s with %lld rows of %lld: launch failed: %s", Operator::kName,
        static_cast<long long>(count_rows(shape_of(x))), static_cast<long long>(shape_of(x).last()),
        cudaGetErrorString(status));
    return kFailure;
  }

  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &field_collection_; }

 private:
  using Problem = typename Operator::Problem;

  static constexpr int32_t kSuccess = 0, kFailure = -1;  // what TensorRT expects of a plugin's methods
  static constexpr int32_t kX = 0;
  static constexpr int32_t kFieldCount = sizeof(Operator::kFields) / sizeof(AttributeField);

  bool has_counts(int32_t input_count, int32_t output_count) const {
    ErrorText error;
    return output_count == Operator::output_count(attributes_) &&
           report(Operator::check_inputs(attributes_, input_count, &error), error);
  }

  // The problem at the largest shapes of a profile.
  bool largest_problem(Descriptions inputs, int32_t input_count, Problem* problem) const {
    Shape shapes[Operator::kMaxInputs] = {};
    for (int32_t i = 0; i < input_count; ++i) {
      const nvinfer1::Dims& known = inputs[i].desc.dims;
      bool is_dynamic = false;
      for (int32_t axis = 0; axis < known.nbDims; ++axis) is_dynamic = is_dynamic || known.d[axis] < 0;
      shapes[i] = shape_of(is_dynamic ? inputs[i].max : known);
    }
    return describe(shapes, inputs[kX].desc.type, problem);
  }

  bool describe(const Shape* shapes, TrtType x_type, Problem* problem) const {
    ErrorText error;
    return report(Operator::describe_problem(attributes_, shapes, element_type(x_type), problem, &error), error);
  }

  const Attributes attributes_;
  nvinfer1::PluginField fields_[kFieldCount];
  nvinfer1::PluginFieldCollection field_collection_;

  // Set by onShapeChange() for enqueue().
  Problem problem_ = {};
  typename Operator::Config config_ = {};
};

template <typename Operator>
class OperatorCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  OperatorCreator() noexcept {
    for (int32_t i = 0; i < kFieldCount; ++i) {
      fields_[i] = {Operator::kFields[i].name, nullptr, Operator::kFields[i].type, 1};
    }
  }

  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    typename Operator::Attributes attributes = {};
    bool read = fields != nullptr;
    for (int32_t i = 0; i < kFieldCount && read; ++i) {
      read = read_attribute(*fields, Operator::kName, Operator::kFields[i], &attributes);
    }
    ErrorText error;
    if (!read || !report(Operator::check_attributes(attributes, &error), error)) {
      log(nvinfer1::ILogger::Severity::kERROR, "%s: cannot create the plugin of node '%s'", Operator::kName,
          name != nullptr ? name : "");
      return nullptr;
    }
    return new (std::nothrow) OperatorPlugin<Operator>(attributes);
  }

  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &field_collection_; }
  nvinfer1::AsciiChar const* getPluginName() const noexcept override { return Operator::kName; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return Operator::kVersion; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kDomain; }

 private:
  static constexpr int32_t kFieldCount = sizeof(Operator::kFields) / sizeof(AttributeField);

  nvinfer1::PluginField fields_[kFieldCount];
  const nvinfer1::PluginFieldCollection field_collection_ = {kFieldCount, fields_};
};

}  // namespace awq2trt
