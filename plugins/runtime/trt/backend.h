// Conversations with an engine. In: the engine, its contract and profiles, memory of the GPU. Out: a backend.
//
// Each profile has one context, which serves all conversations: their addresses are set before each call, and one
// thread makes all calls, one after the other. A cache's past and present are one buffer, as the contract allows.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "artifact/manifest.h"
#include "backend/backend.h"
#include "backend/contract.h"
#include "backend/device_memory.h"
#include "trt/engine.h"

namespace awq2trt {
namespace trt {

// `open` loads the engine, on the thread that will use it.
std::unique_ptr<Backend> make_engine_backend(const Contract& contract, const std::vector<ProfileRecord>& profiles,
                                             std::unique_ptr<DeviceMemory> memory,
                                             const std::function<std::unique_ptr<Engine>()>& open);

}  // namespace trt
}  // namespace awq2trt
