// The graphs beside a decoder of embeddings, in ONNX Runtime. In: tokens, prepared images. Out: their rows.
//
// The embedding runs on the CPU, whatever runs the decoder: it reads a row a token from a table that may then stay out
// of a GPU's memory. The vision graph runs where the decoder does.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/contract.h"
#include "backend/device_memory.h"
#include "ort/session.h"

namespace awq2trt {
namespace ort {

// Any thread may call it.
class EmbeddingGraph {
 public:
  EmbeddingGraph(std::shared_ptr<const Session> session, const Contract& decoder);

  int64_t width() const { return decoder_.width(); }
  // [count, width]; text adds zeros behind a decoder's first blocks.
  void embed(const int32_t* ids, size_t count, float* rows) const;

 private:
  void run(const int32_t* ids, size_t count, float* embeddings) const;

  std::shared_ptr<const Session> session_;
  Contract decoder_;
  Owned<abi::RunOptions> options_;
};

class VisionGraph {
 public:
  VisionGraph(std::shared_ptr<const Session> session, const VisionContract& contract);

  // [pieces, width]. `device`: where the graph runs; null for the CPU. Any thread may call it; with a device, the one
  // that uses its memory.
  std::vector<float> see(const PreparedImage& image, DeviceMemory* device) const;

 private:
  std::shared_ptr<const Session> session_;
  VisionContract contract_;
  Owned<abi::RunOptions> options_;
};

// Both on the CPU.
class CpuEmbedder : public Embedder {
 public:
  CpuEmbedder(EmbeddingGraph embedding, VisionGraph vision)
      : embedding_(std::move(embedding)), vision_(std::move(vision)) {}

  int64_t width() const override { return embedding_.width(); }
  void embed(const int32_t* ids, size_t count, float* rows) const override { embedding_.embed(ids, count, rows); }
  std::vector<float> see(const PreparedImage& image) const override { return vision_.see(image, nullptr); }

 private:
  EmbeddingGraph embedding_;
  VisionGraph vision_;
};

}  // namespace ort
}  // namespace awq2trt
