// Translates TensorRT's types, shapes and attributes. In: what TensorRT passes to a plugin. Out: the same in the form
// that the rules of an operator (ops/) take. Errors go to TensorRT's logger. Nothing here throws or allocates.
#pragma once

#include <cstddef>
#include <cstdint>

#include <NvInferRuntime.h>

#include "ops/operator.h"

namespace awq2trt {

ElementType element_type(nvinfer1::DataType type);

// `dims` must outlive it.
Shape shape_of(const nvinfer1::Dims& dims);

// Logs the error of a check that failed, and passes its result on.
bool report(bool passed, const ErrorText& error,
            nvinfer1::ILogger::Severity severity = nvinfer1::ILogger::Severity::kERROR);

// An attribute of a node: its name, and where an operator's Attributes has it. Engines store it as `type`.
struct AttributeField {
  const char* name;
  nvinfer1::PluginFieldType type;  // kINT32 for an int32_t, kFLOAT32 for a float
  size_t offset;
  bool may_be_missing = false;  // it is 0 then
};

// Writes an attribute of the operator `op` to its place in `attributes`; false, with the reason in the log, if a
// required attribute is missing or is not a number of its type.
bool read_attribute(const nvinfer1::PluginFieldCollection& fields, const char* op, const AttributeField& field,
                    void* attributes);

}  // namespace awq2trt
