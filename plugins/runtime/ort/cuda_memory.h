// A GPU's memory through the CUDA driver, which is opened while the program runs. In: the number of a GPU, and what the
// model asks of it. Out: memory and a stream in the GPU's primary context, the one that ONNX Runtime works in.
#pragma once

#include <memory>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"
#include "backend/device_memory.h"

namespace awq2trt {
namespace ort {

// Throws Error: kNoDriver without a driver, or with one that is too old; kWrongDevice if there is no such GPU, or it is
// older than the model wants.
std::unique_ptr<DeviceMemory> open_cuda_memory(const LoweredRecord& record, const LoadOptions& options);

}  // namespace ort
}  // namespace awq2trt
