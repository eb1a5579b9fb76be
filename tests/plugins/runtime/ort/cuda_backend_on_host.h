// The CUDA backend (plugins/runtime/ort/cuda.cpp) with the host in place of the GPU. In: a model that was built for the
// target `cuda`, which the CPU provider runs too. Out: its backend.
#pragma once

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "artifact/manifest.h"
#include "backend/contract.h"
#include "on_host.h"
#include "ort/cuda.h"
#include "ort/session.h"

namespace on_host {

struct Files {
  std::string directory, onnxruntime, operators;
  std::string weights;  // another directory, if they are to come from there
};

// `live`: counts allocated memory; `tables`: those of a text, for a decoder that reads some; `written`: counts bytes
// that are written, or null.
inline std::unique_ptr<awq2trt::Backend> open_cuda_backend(const Files& files, const awq2trt::Manifest& manifest,
                                                           size_t* live,
                                                           std::shared_ptr<const awq2trt::Tables> tables = nullptr,
                                                           size_t* written = nullptr) {
  namespace ort = awq2trt::ort;
  const std::string& directory = files.directory;
  const awq2trt::Contract contract = awq2trt::read_contract(manifest.decoder, directory);
  const auto library = ort::Library::open(files.onnxruntime, {1, 27});
  ort::Execution execution;
  execution.threads = 1;
  const ort::Execution plain = execution;
  execution.operators = files.operators;
  const std::string model = directory + "/" + manifest.decoder.model;
  std::ifstream in(model, std::ios::binary);
  const std::string graph{std::istreambuf_iterator<char>(in), {}};
  const auto open = [&](const std::vector<ort::DeviceWeight>& placed) {
    execution.weights = placed;
    return ort::Session::open(library, model, execution);
  };
  ort::CudaSight sight;
  if (manifest.vision) {
    const auto& seen = *manifest.vision;
    const auto beside = [=](const std::string& file) {
      return ort::Session::open(library, directory + "/" + file, plain);
    };
    sight.embedding = std::make_unique<ort::EmbeddingGraph>(beside(seen.embedding.model), contract);
    sight.open_vision = [=, &seen] {
      return std::make_unique<ort::VisionGraph>(beside(seen.vision.model),
                                                awq2trt::read_vision_contract(seen, contract, directory));
    };
  }
  const int64_t longest = std::min(manifest.lowered->longest_chunk, contract.capacity);
  return ort::make_cuda_backend({contract, longest, false, files.weights.empty() ? directory : files.weights,
                                 ort::find_stored_weights(graph, 1), std::move(tables)},
                                std::make_unique<HostMemory>(live, written), open, std::move(sight));
}

}  // namespace on_host
