// TensorRT's calls, in the order in which it makes them: a creator reads the node's attributes; at build the plugin
// says which types and shapes it takes and how much workspace; in an engine it chooses a kernel for the shapes at hand
// and enqueues it. Whatever is wrong goes to TensorRT's logger, and the call fails.
#include "trt/w4a16_linear_plugin.h"

#include <cstring>
#include <new>

#include "trt/logging.h"

namespace awq2trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using w4a16_linear::kGroupSize;
using w4a16_linear::kHasBias;
using w4a16_linear::kHasZeros;
using w4a16_linear::kName;
using w4a16_linear::kVersion;
using w4a16_linear::kX;
using TrtType = nvinfer1::DataType;
using Severity = nvinfer1::ILogger::Severity;

constexpr int32_t kSuccess = 0, kFailure = -1;  // what TensorRT expects of a plugin's methods

ElementType element_type(TrtType type) {
  switch (type) {
    case TrtType::kFLOAT:
      return ElementType::kFloat32;
    case TrtType::kHALF:
      return ElementType::kFloat16;
    case TrtType::kBF16:
      return ElementType::kBFloat16;
    case TrtType::kINT4:
      return ElementType::kInt4;
    case TrtType::kINT8:
      return ElementType::kInt8;
    case TrtType::kINT32:
      return ElementType::kInt32;
    case TrtType::kINT64:
      return ElementType::kInt64;
    case TrtType::kUINT8:
      return ElementType::kUint8;
    default:
      return ElementType::kOther;
  }
}

Shape shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.nbDims}; }

// Logs the error of a check that failed, and passes its result on.
bool report(bool passed, const ErrorText& error, Severity severity = Severity::kERROR) {
  if (!passed) log(severity, "%s", error.text);
  return passed;
}

bool has_input_count(const w4a16_linear::Attributes& attributes, int32_t count) {
  ErrorText error;
  return report(w4a16_linear::check_input_count(attributes, count, &error), error);
}

// The problem at the largest shapes of a profile, as many inputs as the attributes say.
bool largest_problem(const w4a16_linear::Attributes& attributes, nvinfer1::DynamicPluginTensorDesc const* inputs,
                     GemmProblem* problem) {
  Shape shapes[w4a16_linear::kMaxInputs] = {};
  for (int32_t i = 0; i < w4a16_linear::input_count(attributes); ++i) {
    shapes[i] = shape_of(i == kX ? inputs[i].max : inputs[i].desc.dims);
  }
  ErrorText error;
  const ElementType x_type = element_type(inputs[kX].desc.type);
  return report(w4a16_linear::describe_problem(attributes, shapes, x_type, problem, &error), error);
}

// An integer attribute; false, with the reason in the log, if it is missing or no integer.
bool read_integer(const nvinfer1::PluginFieldCollection& fields, const char* name, int32_t* value) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    if (std::strcmp(field.name, name) != 0 || field.data == nullptr || field.length < 1) continue;
    if (field.type == PluginFieldType::kINT32) {
      *value = *static_cast<const int32_t*>(field.data);
      return true;
    }
    if (field.type == PluginFieldType::kINT64) {
      const int64_t wide = *static_cast<const int64_t*>(field.data);
      *value = static_cast<int32_t>(wide);
      if (*value == wide) return true;
    }
    log(Severity::kERROR, "%s: attribute %s is no 32-bit integer", kName, name);
    return false;
  }
  log(Severity::kERROR, "%s: attribute %s is missing", kName, name);
  return false;
}

}  // namespace

// --- Plugin ---

W4A16LinearPlugin::W4A16LinearPlugin(const w4a16_linear::Attributes& attributes) noexcept
    : attributes_(attributes),
      fields_{{kGroupSize, &attributes_.group_size, PluginFieldType::kINT32, 1},
              {kHasZeros, &attributes_.has_zeros, PluginFieldType::kINT32, 1},
              {kHasBias, &attributes_.has_bias, PluginFieldType::kINT32, 1}},
      field_collection_{3, fields_} {}

nvinfer1::IPluginCapability* W4A16LinearPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* W4A16LinearPlugin::clone() noexcept { return new (std::nothrow) W4A16LinearPlugin(*this); }

nvinfer1::AsciiChar const* W4A16LinearPlugin::getPluginName() const noexcept { return kName; }
nvinfer1::AsciiChar const* W4A16LinearPlugin::getPluginVersion() const noexcept { return kVersion; }
nvinfer1::AsciiChar const* W4A16LinearPlugin::getPluginNamespace() const noexcept { return kDomain; }

int32_t W4A16LinearPlugin::getOutputDataTypes(TrtType* output_types, int32_t output_count, TrtType const* input_types,
                                              int32_t input_count) const noexcept {
  if (output_count != 1 || !has_input_count(attributes_, input_count)) return kFailure;
  output_types[0] = input_types[kX];
  return kSuccess;
}

int32_t W4A16LinearPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
                                           nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs,
                                           int32_t output_count, nvinfer1::IExprBuilder&) noexcept {
  if (output_count != 1 || !has_input_count(attributes_, input_count)) return kFailure;
  const nvinfer1::DimsExprs &x = inputs[kX], &codes = inputs[w4a16_linear::kCodes];
  ErrorText error;
  if (!report(w4a16_linear::check_ranks(x.nbDims, codes.nbDims, &error), error)) return kFailure;
  outputs[0] = x;
  outputs[0].d[x.nbDims - 1] = codes.d[0];
  return kSuccess;
}

bool W4A16LinearPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                                  int32_t input_count, int32_t output_count) noexcept {
  if (output_count != 1 || !has_input_count(attributes_, input_count)) return false;
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
    log(Severity::kVERBOSE, "%s: tensor %d must be in linear format", kName, position);
    return false;
  }
  ErrorText error;
  const bool supported = w4a16_linear::check_type(attributes_, position, element_type(tensor.type),
                                                  element_type(tensors[kX].desc.type), &error);
  return report(supported, error, Severity::kVERBOSE);  // TensorRT is trying what there is
}

int32_t W4A16LinearPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                           nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
  if (output_count != 1 || !has_input_count(attributes_, input_count)) return kFailure;
  GemmProblem problem = {};
  return largest_problem(attributes_, inputs, &problem) ? kSuccess : kFailure;
}

size_t W4A16LinearPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                           nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept {
  if (!has_input_count(attributes_, input_count)) return 0;
  GemmProblem problem = {};
  return largest_problem(attributes_, inputs, &problem) ? workspace_bound(problem) : 0;
}

nvinfer1::IPluginV3* W4A16LinearPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

int32_t W4A16LinearPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                                         nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
  if (!has_input_count(attributes_, input_count)) return kFailure;
  Shape shapes[w4a16_linear::kMaxInputs] = {};
  for (int32_t i = 0; i < input_count; ++i) shapes[i] = shape_of(inputs[i].dims);
  ErrorText error;
  const ElementType x_type = element_type(inputs[kX].type);
  if (!report(w4a16_linear::describe_problem(attributes_, shapes, x_type, &problem_, &error), error)) return kFailure;
  Device device = {};
  const cudaError_t status = query_device(&device);
  if (status != cudaSuccess) {
    log(Severity::kERROR, "%s: cannot query the GPU: %s", kName, cudaGetErrorString(status));
    return kFailure;
  }
  config_ = choose_config(problem_, device);
  return kSuccess;
}

int32_t W4A16LinearPlugin::enqueue(nvinfer1::PluginTensorDesc const*, nvinfer1::PluginTensorDesc const*,
                                   void const* const* inputs, void* const* outputs, void* workspace,
                                   cudaStream_t stream) noexcept {
  const int32_t zeros = w4a16_linear::zeros_input(attributes_), bias = w4a16_linear::bias_input(attributes_);
  LinearTensors tensors = {};
  tensors.x = inputs[kX];
  tensors.codes = inputs[w4a16_linear::kCodes];
  tensors.scales = inputs[w4a16_linear::kScales];
  if (zeros != w4a16_linear::kNoInput) tensors.zeros = inputs[zeros];
  if (bias != w4a16_linear::kNoInput) tensors.bias = inputs[bias];
  tensors.y = outputs[0];
  tensors.workspace = workspace;
  const cudaError_t status = launch_w4a16_linear(problem_, config_, tensors, stream);
  if (status == cudaSuccess) return kSuccess;
  log(Severity::kERROR, "%s with M = %d, N = %d, K = %d, group_size = %d: launch failed: %s", kName, problem_.m,
      problem_.n, problem_.k, problem_.group_size, cudaGetErrorString(status));
  return kFailure;
}

nvinfer1::PluginFieldCollection const* W4A16LinearPlugin::getFieldsToSerialize() noexcept { return &field_collection_; }

// --- Creator ---

nvinfer1::IPluginV3* W4A16LinearCreator::createPlugin(nvinfer1::AsciiChar const* name,
                                                      nvinfer1::PluginFieldCollection const* fields,
                                                      nvinfer1::TensorRTPhase) noexcept {
  w4a16_linear::Attributes attributes = {};
  const bool read = fields != nullptr && read_integer(*fields, kGroupSize, &attributes.group_size) &&
                    read_integer(*fields, kHasZeros, &attributes.has_zeros) &&
                    read_integer(*fields, kHasBias, &attributes.has_bias);
  ErrorText error;
  if (!read || !report(w4a16_linear::check_attributes(attributes, &error), error)) {
    log(Severity::kERROR, "%s: cannot create the plugin of node '%s'", kName, name != nullptr ? name : "");
    return nullptr;
  }
  return new (std::nothrow) W4A16LinearPlugin(attributes);
}

nvinfer1::PluginFieldCollection const* W4A16LinearCreator::getFieldNames() noexcept {
  static const PluginField fields[] = {{kGroupSize, nullptr, PluginFieldType::kINT32, 1},
                                       {kHasZeros, nullptr, PluginFieldType::kINT32, 1},
                                       {kHasBias, nullptr, PluginFieldType::kINT32, 1}};
  static const nvinfer1::PluginFieldCollection collection = {3, fields};
  return &collection;
}

nvinfer1::AsciiChar const* W4A16LinearCreator::getPluginName() const noexcept { return kName; }
nvinfer1::AsciiChar const* W4A16LinearCreator::getPluginVersion() const noexcept { return kVersion; }
nvinfer1::AsciiChar const* W4A16LinearCreator::getPluginNamespace() const noexcept { return kDomain; }

}  // namespace awq2trt
