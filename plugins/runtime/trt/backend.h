// Conversations with engines. In: the engines, what they read and make, memory of the GPU. Out: a backend.
//
// Each profile of an engine has one context, which serves all conversations: their addresses are set before each call,
// and one thread makes all calls, one after the other. A cache's past and present are one buffer, as the contract
// allows.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "artifact/manifest.h"
#include "backend/backend.h"
#include "backend/contract.h"
#include "backend/device_memory.h"
#include "trt/engine.h"

namespace awq2trt {
namespace trt {

struct EnginePlan {
  Contract contract;
  EngineRecord record;                   // its profiles
  std::optional<VisionContract> vision;  // nothing for a decoder of tokens
};

// Those beside the decoder are null for a decoder of tokens.
struct Engines {
  std::unique_ptr<Engine> decoder, embedding, vision;
};

// `open` loads the engines, on the thread that will use them.
std::unique_ptr<Backend> make_engine_backend(const EnginePlan& plan, std::unique_ptr<DeviceMemory> memory,
                                             const std::function<Engines()>& open);

}  // namespace trt
}  // namespace awq2trt
