// The CUDA backend with the host in place of the GPU: tests its bookkeeping without a GPU.
//
//   cuda_on_host DIR ONNXRUNTIME [OPERATORS [WEIGHTS]] < commands
//
// In: a model as of cuda_backend_on_host.h, and commands (on_host.h). Out: answers, and last how much memory was left.
#include "ort/cuda_backend_on_host.h"

#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const on_host::Files files{argv[1], argv[2], argc > 3 ? argv[3] : "", argc > 4 ? argv[4] : ""};
  size_t live = 0;
  try {
    const awq2trt::Manifest manifest = awq2trt::read_manifest(files.directory);
    on_host::serve(*on_host::open_cuda_backend(files, manifest, &live));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << live << '\n';
  return 0;
}
