// Sessions with images on engines of models that see, over stand-ins, which ONNX Runtime computes on the host.
//
//   engine_sight_on_host DIR ONNXRUNTIME < commands
//
// In: the directory of engines with their graphs (stand_in_engine.h), and commands (sessions_on_host.h). Out: answers,
// and last how much memory was left.
#include <iostream>

#include "session/model_state.h"
#include "sessions_on_host.h"
#include "trt/stand_in_engine.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string directory = argv[1], onnxruntime = argv[2];
  on_host::Blocks blocks;
  try {
    const auto open = [&](const awq2trt::Manifest& manifest, const auto&) {
      return on_host::open_engine_backend(directory, manifest, onnxruntime, &blocks);
    };
    on_host::serve(awq2trt::detail::load_model(directory, awq2trt::Verify::kAlways, open), &blocks.written);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << blocks.live << '\n';
  return 0;
}
