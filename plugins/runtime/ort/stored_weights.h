// Where an ONNX model keeps its large weights. In: model.onnx, with external data. Out: names, types, shapes, and
// places in files. The weights themselves are not read.
//
// onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; its encoding:
// https://protobuf.dev/programming-guides/encoding.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ort/abi.h"

namespace awq2trt {
namespace ort {

struct StoredWeight {
  std::string name;
  abi::ElementType type;
  std::vector<int64_t> shape;
  std::string file;  // beside the model
  uint64_t offset, bytes;
};

// Those of at least so many bytes that lie in files beside the model and are of a type that is read as it is. What is
// not plain is not among them, and of a model that is damaged there are none: ONNX Runtime says what is wrong with it.
std::vector<StoredWeight> find_stored_weights(std::string_view model, uint64_t least_bytes);

}  // namespace ort
}  // namespace awq2trt
