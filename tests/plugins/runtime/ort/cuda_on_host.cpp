// The CUDA backend (plugins/runtime/ort/cuda.cpp) with the host in place of the GPU: tests its bookkeeping without a
// GPU.
//
//   cuda_on_host DIR ONNXRUNTIME [OPERATORS [WEIGHTS]] < commands
//
// In: a model that was built for the target `cuda`, which the CPU provider runs too, commands (on_host.h), and another
// directory if its weights are to come from there. Out: answers, and last how much memory was left.
#include "ort/cuda.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>

#include "artifact/manifest.h"
#include "on_host.h"
#include "ort/session.h"

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::string directory = argv[1];
  size_t live = 0;
  try {
    const awq2trt::Manifest manifest = awq2trt::read_manifest(directory);
    const awq2trt::Contract contract = awq2trt::read_contract(manifest.decoder, directory);
    const auto library = awq2trt::ort::Library::open(argv[2], {1, 27});
    awq2trt::ort::Execution execution;
    execution.threads = 1;
    if (argc > 3) execution.operators = argv[3];
    const std::string model = directory + "/" + manifest.decoder.model;
    std::ifstream in(model, std::ios::binary);
    const std::string graph{std::istreambuf_iterator<char>(in), {}};
    const auto weights = awq2trt::ort::find_stored_weights(graph, 1);
    const auto open = [&](const std::vector<awq2trt::ort::DeviceWeight>& placed) {
      execution.weights = placed;
      return awq2trt::ort::Session::open(library, model, execution);
    };
    awq2trt::ort::CudaSight sight;
    if (manifest.vision) {
      awq2trt::ort::Execution plain;
      plain.threads = 1;
      const auto& seen = *manifest.vision;
      const auto embedding = awq2trt::ort::Session::open(library, directory + "/" + seen.embedding.model, plain);
      sight.embedding = std::make_unique<awq2trt::ort::EmbeddingGraph>(embedding, contract);
      sight.open_vision = [=, &seen] {
        return std::make_unique<awq2trt::ort::VisionGraph>(
            awq2trt::ort::Session::open(library, directory + "/" + seen.vision.model, plain),
            awq2trt::read_vision_contract(seen, contract, directory));
      };
    }
    const int64_t longest = std::min(manifest.lowered->longest_chunk, contract.capacity);
    on_host::serve(*awq2trt::ort::make_cuda_backend({contract, longest, false, argc > 4 ? argv[4] : directory, weights},
                                                    std::make_unique<on_host::HostMemory>(&live), open,
                                                    std::move(sight)));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << live << '\n';
  return 0;
}
