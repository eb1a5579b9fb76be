// A GPU's memory through the CUDA driver, which is opened while the program runs. In: the number of a GPU, and what the
// model requires of it. Out: memory and a stream in the GPU's primary context, in which ONNX Runtime works.
#pragma once

#include <memory>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"
#include "backend/device_memory.h"

namespace awq2trt {
namespace ort {

// Throws Error: kNoDriver without a driver, or with one that is too old; kWrongDevice if there is no such GPU, or if it
// is too old for the model.
std::unique_ptr<DeviceMemory> open_cuda_memory(const LoweredRecord& record, const LoadOptions& options);

}  // namespace ort
}  // namespace awq2trt
