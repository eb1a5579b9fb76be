// Checks whether a model fits into a GPU's memory. In: its files, its caches, and the free memory. Out: nothing, or an
// Error before anything is loaded.
#pragma once

#include <cstdint>
#include <string>

#include "artifact/manifest.h"
#include "backend/contract.h"
#include "backend/device_memory.h"

namespace awq2trt {

// Bytes that are needed at least: intermediate results between the layers are not counted.
struct Needs {
  uint64_t weights;  // of the model's or the engine's files
  uint64_t caches;   // of one conversation at full capacity
  uint64_t runtime;  // kernels and workspaces of the runtime

  uint64_t total() const { return weights + caches + runtime; }
};

Needs predict_needs(const Manifest& manifest, const Contract& contract);

// Throws Error, kOutOfDeviceMemory. `device`: its name, for people.
void require_memory(const Needs& needs, const MemoryInfo& memory, const std::string& device);

}  // namespace awq2trt
