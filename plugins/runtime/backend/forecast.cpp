// See forecast.h.
#include "backend/forecast.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

// cuBLAS's workspaces, and the kernels' code: an H100 used 0.4 GiB beyond weights, caches and activations. The same
// number as in awq2trt/runtime/ort/loading.py.
constexpr uint64_t kRuntimeBytes = 512ull << 20;

std::string gibibytes(uint64_t bytes) {
  constexpr double kGibibyte = 1ull << 30;
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f", static_cast<double>(bytes) / kGibibyte);
  return text;
}

}  // namespace

Needs predict_needs(const Manifest& manifest, const Contract& contract) {
  Needs needs{0, 0, kRuntimeBytes};
  std::vector<const GraphRecord*> graphs = {&manifest.decoder};
  if (manifest.vision) graphs.push_back(&manifest.vision->vision);
  // ONNX Runtime's embedding stays on the CPU.
  if (manifest.vision && manifest.engine) graphs.push_back(&manifest.vision->embedding);
  for (const auto& [name, record] : manifest.files) {
    const std::string& file = name;
    // An ONNX model's weights are in files whose names begin with the model's name.
    const auto has = [&](const GraphRecord* graph) {
      return manifest.engine ? file == *graph->engine : file.rfind(graph->model, 0) == 0;
    };
    if (std::any_of(graphs.begin(), graphs.end(), has)) needs.weights += record.size_bytes;
  }
  for (const CachePair& pair : contract.caches) needs.caches += contract.cache_bytes(pair, contract.capacity);
  for (const TableContract& table : contract.tables) needs.caches += table.bytes();
  return needs;
}

void require_memory(const Needs& needs, const MemoryInfo& memory, const std::string& device) {
  if (needs.total() <= memory.free_bytes) return;
  const std::string shorter = "build with a shorter --max-seq-len";
  throw Error(ErrorCode::kOutOfDeviceMemory,
              "the model needs at least " + gibibytes(needs.total()) + " GiB of GPU memory (weights " +
                  gibibytes(needs.weights) + ", caches " + gibibytes(needs.caches) + ", runtime " +
                  gibibytes(needs.runtime) + "), of which " + gibibytes(memory.free_bytes) + " are free of " +
                  gibibytes(memory.total_bytes),
              device,
              needs.total() <= memory.total_bytes
                  ? "end other programs that use the GPU (nvidia-smi lists them), or " + shorter + "."
                  : "use a GPU with more memory, or " + shorter + ".");
}

}  // namespace awq2trt
