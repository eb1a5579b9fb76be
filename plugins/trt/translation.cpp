// Types, shapes and attributes; see translation.h.
#include "trt/translation.h"

#include <cstring>

#include "trt/logging.h"

namespace awq2trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using Severity = nvinfer1::ILogger::Severity;

const PluginField* find_field(const nvinfer1::PluginFieldCollection& fields, const char* name) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    if (std::strcmp(field.name, name) == 0 && field.data != nullptr && field.length >= 1) return &field;
  }
  return nullptr;
}

// An integer that ONNX's parser or an engine wrote, in 64 or 32 bits.
bool read_integer(const PluginField& field, int32_t* value) {
  if (field.type == PluginFieldType::kINT32) {
    *value = *static_cast<const int32_t*>(field.data);
    return true;
  }
  if (field.type != PluginFieldType::kINT64) return false;
  const int64_t wide = *static_cast<const int64_t*>(field.data);
  *value = static_cast<int32_t>(wide);
  return *value == wide;
}

bool read_float(const PluginField& field, float* value) {
  if (field.type != PluginFieldType::kFLOAT32) return false;
  *value = *static_cast<const float*>(field.data);
  return true;
}

}  // namespace

ElementType element_type(nvinfer1::DataType type) {
  using TrtType = nvinfer1::DataType;
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

bool report(bool passed, const ErrorText& error, Severity severity) {
  if (!passed) log(severity, "%s", error.text);
  return passed;
}

bool read_attribute(const nvinfer1::PluginFieldCollection& fields, const char* op, const AttributeField& field,
                    void* attributes) {
  const PluginField* const given = find_field(fields, field.name);
  if (given == nullptr && field.may_be_missing) return true;
  if (given == nullptr) {
    log(Severity::kERROR, "%s: attribute %s is missing", op, field.name);
    return false;
  }
  void* const place = static_cast<char*>(attributes) + field.offset;
  const bool is_integer = field.type == PluginFieldType::kINT32;
  if (is_integer ? read_integer(*given, static_cast<int32_t*>(place))
                 : read_float(*given, static_cast<float*>(place))) {
    return true;
  }
  log(Severity::kERROR, "%s: attribute %s is no 32-bit %s", op, field.name, is_integer ? "integer" : "float");
  return false;
}

}  // namespace awq2trt
