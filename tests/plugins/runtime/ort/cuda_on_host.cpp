// The CUDA backend (plugins/runtime/ort/cuda.cpp) with the host in place of the GPU: tests its bookkeeping without a
// GPU.
//
//   cuda_on_host DIR ONNXRUNTIME [OPERATORS] < commands
//
// In: a model that was built for the target `cuda`, which the CPU provider runs too, and commands (on_host.h). Out:
// answers, and last how much memory was left.
#include "ort/cuda.h"

#include <algorithm>
#include <iostream>

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
    const auto open = [&] {
      return awq2trt::ort::Session::open(library, directory + "/" + manifest.decoder.model, execution);
    };
    const int64_t longest = std::min(manifest.lowered->longest_chunk, contract.capacity);
    on_host::serve(*awq2trt::ort::make_cuda_backend({contract, longest, false},
                                                    std::make_unique<on_host::HostMemory>(&live), open));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << live << '\n';
  return 0;
}
