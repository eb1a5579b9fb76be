// ONNX Runtime on a GPU: caches, tokens and scores stay there. In: a model that was built for the target `cuda`, and
// the GPU's memory. Out: a backend.
//
// One session serves all conversations. A call of one token, whose buffers never move, is captured in a CUDA graph of
// its own conversation and replayed; chunks of a prompt run node by node. ONNX Runtime keeps graphs per thread, and the
// graphs' intermediate tensors use memory that is free in its arena between calls, so one thread makes all calls, one
// after the other. ONNX Runtime never forgets a graph: buffers and graph of a conversation that ended serve the next
// one.
//
// ONNX Runtime, "CUDA graphs": https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
#pragma once

#include <functional>
#include <memory>

#include "backend/backend.h"
#include "backend/contract.h"
#include "backend/device_memory.h"
#include "ort/embedder.h"
#include "ort/session.h"

namespace awq2trt {
namespace ort {

struct CudaPlan {
  Contract contract;
  int64_t longest_call;
  bool graph;  // calls of one token are captured
  std::string directory;
  std::vector<StoredWeight> weights;     // that are put on the device before the session is made
  std::shared_ptr<const Tables> tables;  // of a text, for a decoder that reads some; otherwise null
};

// The graphs beside a decoder of embeddings; both null for one of tokens.
struct CudaSight {
  std::unique_ptr<EmbeddingGraph> embedding;
  std::function<std::unique_ptr<VisionGraph>()> open_vision;  // called on the thread that will use it
};

// Makes a session over weights that lie on the device.
using OpenSession = std::function<std::shared_ptr<const Session>(const std::vector<DeviceWeight>& weights)>;

// `open` is called on the thread that will use the session. The vision graph works on the same stream, and never while
// another thread's call is captured.
std::unique_ptr<Backend> make_cuda_backend(const CudaPlan& plan, std::unique_ptr<DeviceMemory> memory,
                                           const OpenSession& open, CudaSight sight);

}  // namespace ort
}  // namespace awq2trt
