// The engines beside a decoder of embeddings. In: tokens, prepared images. Out: their rows.
//
// Everything here runs on the thread that uses the device's memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "artifact/manifest.h"
#include "backend/contract.h"
#include "backend/device_memory.h"
#include "backend/staged.h"
#include "trt/engine.h"
#include "trt/token_engine.h"

namespace awq2trt {
namespace trt {

class EmbeddingEngine {
 public:
  // `type`: of the embeddings that it makes.
  EmbeddingEngine(TokenEngine engine, const Contract& decoder, Number type, DeviceMemory* memory)
      : engine_(std::move(engine)), decoder_(decoder), type_(type), memory_(*memory) {}

  // [count, width of the decoder's rows], in as few calls as the longest profile allows.
  void embed(const int32_t* ids, size_t count, float* rows);

 private:
  void call(const int32_t* ids, size_t count, float* embeddings);

  TokenEngine engine_;
  Contract decoder_;
  Number type_;
  DeviceMemory& memory_;
  size_t room_ = 0;  // tokens for which there is memory: as many as in the longest call so far
  std::optional<Staged> ids_, embeddings_;
};

class VisionEngine {
 public:
  VisionEngine(std::unique_ptr<Engine> engine, const std::vector<ImageProfileRecord>& profiles,
               const VisionContract& contract, DeviceMemory* memory);

  // [pieces, width]. Refuses an image that no profile takes before anything runs.
  std::vector<float> see(const PreparedImage& image) const;

 private:
  Context& context_for(const PreparedImage& image) const;
  [[noreturn]] void refuse(int64_t patches, int64_t windows) const;

  std::unique_ptr<Engine> engine_;
  std::vector<ImageProfileRecord> profiles_;
  VisionContract contract_;
  DeviceMemory& memory_;
  std::vector<std::unique_ptr<Context>> contexts_;  // of each profile; they go first
};

}  // namespace trt
}  // namespace awq2trt
