// A model's large weights on the device, before ONNX Runtime asks for them. In: where they lie in files. Out: memory of
// the device that holds them.
//
// ONNX Runtime copies weights one after the other out of pageable memory, an 8B model's 5.7 GB on an H100 in more than
// three seconds. Here several threads read the files into memory that the device reads by itself, which it does while
// they read on.
#pragma once

#include <string>
#include <vector>

#include "backend/buffer.h"
#include "ort/stored_weights.h"

namespace awq2trt {
namespace ort {

struct DeviceWeight {
  std::string name;
  abi::ElementType type;
  std::vector<int64_t> shape;
  void* data;
  size_t bytes;
};

// Made and given back on the thread that uses `memory`, which outlives it.
class DeviceWeights {
 public:
  // Throws Error: kOutOfDeviceMemory, or kChangedFile for a file that is shorter than the model says.
  DeviceWeights(DeviceMemory* memory, const std::string& directory, const std::vector<StoredWeight>& stored);

  const std::vector<DeviceWeight>& all() const { return weights_; }

 private:
  Buffer buffer_;
  std::vector<DeviceWeight> weights_;
};

}  // namespace ort
}  // namespace awq2trt
