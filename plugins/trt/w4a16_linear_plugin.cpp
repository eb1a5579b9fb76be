#include "w4a16_linear_plugin.h"

#include <climits>
#include <cstring>
#include <new>

#include "logging.h"
#include "w4a16_linear_op.h"

namespace awq2trt {
namespace {

using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using TrtType = nvinfer1::DataType;
using Severity = nvinfer1::ILogger::Severity;

constexpr int32_t kSuccess = 0, kFailure = -1;  // what TensorRT expects of a plugin's methods

// Inputs in order; zeros and bias follow where the attributes say that they are there.
constexpr int32_t kX = 0, kCodes = 1, kScales = 2, kFirstOptional = 3;

const char* name_of(TrtType type) {
  switch (type) {
    case TrtType::kFLOAT:
      return "fp32";
    case TrtType::kHALF:
      return "fp16";
    case TrtType::kBF16:
      return "bf16";
    case TrtType::kINT8:
      return "int8";
    case TrtType::kINT32:
      return "int32";
    case TrtType::kINT64:
      return "int64";
    case TrtType::kINT4:
      return "int4";
    case TrtType::kUINT8:
      return "uint8";
    default:
      return "another type";
  }
}

// Role of an input, for messages and types.
enum class Role { kActivations, kPackedInt4, kLikeActivations };

Role role_of(int32_t input, const W4A16LinearAttributes& attributes) {
  if (input == kX) return Role::kActivations;
  if (input == kCodes || (input == kFirstOptional && attributes.has_zeros != 0)) return Role::kPackedInt4;
  return Role::kLikeActivations;
}

// The problem of these shapes; false, with the reason in the log, if they do not fit each other. `x` has no dynamic
// dimension left.
bool problem_of(const W4A16LinearAttributes& attributes, const Dims& x, TrtType x_type, const Dims& codes,
                const Dims& scales, GemmProblem* problem) {
  if (x.nbDims < 1 || codes.nbDims != 2 || scales.nbDims != 2) {
    log(Severity::kERROR, "%s: expected X [..., K], codes [N, K] and scales [N, groups], got %d, %d and %d dimensions",
        kOpType, x.nbDims, codes.nbDims, scales.nbDims);
    return false;
  }
  int64_t tokens = 1;
  for (int32_t i = 0; i + 1 < x.nbDims; ++i) tokens *= x.d[i];
  const int64_t n = codes.d[0], k = codes.d[1];
  if (x.d[x.nbDims - 1] != k) {
    log(Severity::kERROR, "%s: the last dimension of X is %lld, but the codes are for K = %lld", kOpType,
        static_cast<long long>(x.d[x.nbDims - 1]), static_cast<long long>(k));
    return false;
  }
  if (tokens < 0 || tokens > INT_MAX || n > INT_MAX || k > INT_MAX) {
    log(Severity::kERROR, "%s: %lld tokens, N = %lld, K = %lld: beyond 2^31", kOpType, static_cast<long long>(tokens),
        static_cast<long long>(n), static_cast<long long>(k));
    return false;
  }
  *problem = {static_cast<int>(tokens),
              static_cast<int>(n),
              static_cast<int>(k),
              attributes.group_size,
              x_type == TrtType::kHALF ? DataType::kHalf : DataType::kBFloat16,
              attributes.has_zeros != 0,
              attributes.has_bias != 0};
  if (const char* const reason = check_validity(*problem)) {
    log(Severity::kERROR, "%s with N = %d, K = %d, group_size = %d: %s", kOpType, problem->n, problem->k,
        problem->group_size, reason);
    return false;
  }
  if (scales.d[0] != n || scales.d[1] != problem->groups()) {
    log(Severity::kERROR, "%s: expected scales [%d, %d] for N = %d, K = %d, group_size = %d; got [%lld, %lld]", kOpType,
        problem->n, problem->groups(), problem->n, problem->k, problem->group_size, static_cast<long long>(scales.d[0]),
        static_cast<long long>(scales.d[1]));
    return false;
  }
  return true;
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
    log(Severity::kERROR, "%s: attribute %s is no 32-bit integer", kOpType, name);
    return false;
  }
  log(Severity::kERROR, "%s: attribute %s is missing", kOpType, name);
  return false;
}

bool read_flag(const nvinfer1::PluginFieldCollection& fields, const char* name, int32_t* value) {
  if (!read_integer(fields, name, value)) return false;
  if (*value == 0 || *value == 1) return true;
  log(Severity::kERROR, "%s: attribute %s must be 0 or 1, got %d", kOpType, name, *value);
  return false;
}

}  // namespace

// --- Plugin ---

W4A16LinearPlugin::W4A16LinearPlugin(const W4A16LinearAttributes& attributes) noexcept
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

nvinfer1::AsciiChar const* W4A16LinearPlugin::getPluginName() const noexcept { return kOpType; }
nvinfer1::AsciiChar const* W4A16LinearPlugin::getPluginVersion() const noexcept { return kPluginVersion; }
nvinfer1::AsciiChar const* W4A16LinearPlugin::getPluginNamespace() const noexcept { return kPluginNamespace; }

bool W4A16LinearPlugin::has_input_count(int32_t count) const noexcept {
  if (count == input_count()) return true;
  log(Severity::kERROR, "%s: expected %d inputs for has_zeros = %d and has_bias = %d, got %d", kOpType, input_count(),
      attributes_.has_zeros, attributes_.has_bias, count);
  return false;
}

int32_t W4A16LinearPlugin::getOutputDataTypes(TrtType* output_types, int32_t output_count, TrtType const* input_types,
                                              int32_t input_count) const noexcept {
  if (output_count != 1 || !has_input_count(input_count)) return kFailure;
  output_types[0] = input_types[kX];
  return kSuccess;
}

int32_t W4A16LinearPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
                                           nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs,
                                           int32_t output_count, nvinfer1::IExprBuilder&) noexcept {
  if (output_count != 1 || !has_input_count(input_count)) return kFailure;
  if (inputs[kX].nbDims < 1 || inputs[kCodes].nbDims != 2) {
    log(Severity::kERROR, "%s: expected X [..., K] and codes [N, K], got %d and %d dimensions", kOpType,
        inputs[kX].nbDims, inputs[kCodes].nbDims);
    return kFailure;
  }
  outputs[0] = inputs[kX];
  outputs[0].d[inputs[kX].nbDims - 1] = inputs[kCodes].d[0];
  return kSuccess;
}

bool W4A16LinearPlugin::supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                                  int32_t input_count, int32_t output_count) noexcept {
  if (output_count != 1 || !has_input_count(input_count)) return false;
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
    log(Severity::kVERBOSE, "%s: tensor %d must be in linear format", kOpType, position);
    return false;
  }
  const TrtType x_type = tensors[kX].desc.type;
  const Role role = position == input_count ? Role::kLikeActivations : role_of(position, attributes_);
  bool supported = false;
  const char* expected = "";
  switch (role) {
    case Role::kActivations:
      supported = tensor.type == TrtType::kHALF || tensor.type == TrtType::kBF16;
      expected = "fp16 or bf16";
      break;
    case Role::kPackedInt4:
      supported = tensor.type == TrtType::kINT4;
      expected = "int4";
      break;
    case Role::kLikeActivations:
      supported = tensor.type == x_type;
      expected = name_of(x_type);
      break;
  }
  if (!supported) {
    log(Severity::kVERBOSE, "%s: tensor %d must be %s, got %s", kOpType, position, expected, name_of(tensor.type));
  }
  return supported;
}

int32_t W4A16LinearPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                           nvinfer1::DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
  if (output_count != 1 || !has_input_count(input_count)) return kFailure;
  GemmProblem problem = {};
  const bool valid = problem_of(attributes_, inputs[kX].max, inputs[kX].desc.type, inputs[kCodes].desc.dims,
                                inputs[kScales].desc.dims, &problem);
  if (!valid) return kFailure;
  if (attributes_.has_zeros != 0) {
    const Dims& zeros = inputs[kFirstOptional].desc.dims;
    if (zeros.nbDims != 2 || zeros.d[0] != problem.n || zeros.d[1] != problem.groups()) {
      log(Severity::kERROR, "%s: zeros must have the shape of the scales, [%d, %d]", kOpType, problem.n,
          problem.groups());
      return kFailure;
    }
  }
  if (attributes_.has_bias != 0) {
    const Dims& bias = inputs[kFirstOptional + attributes_.has_zeros].desc.dims;
    if (bias.nbDims != 1 || bias.d[0] != problem.n) {
      log(Severity::kERROR, "%s: the bias must have shape [%d]", kOpType, problem.n);
      return kFailure;
    }
  }
  return kSuccess;
}

size_t W4A16LinearPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                           nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept {
  if (!has_input_count(input_count)) return 0;
  GemmProblem problem = {};
  const bool valid = problem_of(attributes_, inputs[kX].max, inputs[kX].desc.type, inputs[kCodes].desc.dims,
                                inputs[kScales].desc.dims, &problem);
  return valid ? workspace_bound(problem) : 0;
}

nvinfer1::IPluginV3* W4A16LinearPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

int32_t W4A16LinearPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                                         nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
  if (!has_input_count(input_count)) return kFailure;
  const bool valid =
      problem_of(attributes_, inputs[kX].dims, inputs[kX].type, inputs[kCodes].dims, inputs[kScales].dims, &problem_);
  if (!valid) return kFailure;
  Device device = {};
  const cudaError_t status = query_device(&device);
  if (status != cudaSuccess) {
    log(Severity::kERROR, "%s: cannot query the GPU: %s", kOpType, cudaGetErrorString(status));
    return kFailure;
  }
  config_ = choose_config(problem_, device);
  return kSuccess;
}

int32_t W4A16LinearPlugin::enqueue(nvinfer1::PluginTensorDesc const*, nvinfer1::PluginTensorDesc const*,
                                   void const* const* inputs, void* const* outputs, void* workspace,
                                   cudaStream_t stream) noexcept {
  LinearTensors tensors = {};
  tensors.x = inputs[kX];
  tensors.codes = inputs[kCodes];
  tensors.scales = inputs[kScales];
  if (attributes_.has_zeros != 0) tensors.zeros = inputs[kFirstOptional];
  if (attributes_.has_bias != 0) tensors.bias = inputs[kFirstOptional + attributes_.has_zeros];
  tensors.y = outputs[0];
  tensors.workspace = workspace;
  const cudaError_t status = launch_w4a16_linear(problem_, config_, tensors, stream);
  if (status == cudaSuccess) return kSuccess;
  log(Severity::kERROR, "%s with M = %d, N = %d, K = %d, group_size = %d: launch failed: %s", kOpType, problem_.m,
      problem_.n, problem_.k, problem_.group_size, cudaGetErrorString(status));
  return kFailure;
}

nvinfer1::PluginFieldCollection const* W4A16LinearPlugin::getFieldsToSerialize() noexcept { return &field_collection_; }

// --- Creator ---

nvinfer1::IPluginV3* W4A16LinearCreator::createPlugin(nvinfer1::AsciiChar const* name,
                                                      nvinfer1::PluginFieldCollection const* fields,
                                                      nvinfer1::TensorRTPhase) noexcept {
  W4A16LinearAttributes attributes = {};
  const bool read = fields != nullptr && read_integer(*fields, kGroupSize, &attributes.group_size) &&
                    read_flag(*fields, kHasZeros, &attributes.has_zeros) &&
                    read_flag(*fields, kHasBias, &attributes.has_bias);
  if (!read || attributes.group_size < 1) {
    log(Severity::kERROR, "%s: cannot create the plugin of node '%s' (group_size %d)", kOpType,
        name != nullptr ? name : "", attributes.group_size);
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

nvinfer1::AsciiChar const* W4A16LinearCreator::getPluginName() const noexcept { return kOpType; }
nvinfer1::AsciiChar const* W4A16LinearCreator::getPluginVersion() const noexcept { return kPluginVersion; }
nvinfer1::AsciiChar const* W4A16LinearCreator::getPluginNamespace() const noexcept { return kPluginNamespace; }

}  // namespace awq2trt
