// The backend of engines (plugins/runtime/trt/backend.cpp) over stand-ins, which ONNX Runtime computes on the host:
// profiles, shapes, addresses and caches, without TensorRT and without a GPU.
//
//   engine_on_host DIR ONNXRUNTIME < commands
//
// In: the directory of an engine with its graph (stand_in_engine.h), and commands (on_host.h). Out: answers, and last
// how much memory was left.
#include <iostream>

#include "artifact/manifest.h"
#include "on_host.h"
#include "trt/stand_in_engine.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string directory = argv[1];
  on_host::Blocks blocks;
  try {
    const awq2trt::Manifest manifest = awq2trt::read_manifest(directory);
    on_host::serve(*on_host::open_engine_backend(directory, manifest, argv[2], &blocks));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << blocks.live << '\n';
  return 0;
}
