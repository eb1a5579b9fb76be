// Sessions with images on the CUDA backend, with the host in place of the GPU.
//
//   sight_on_host DIR ONNXRUNTIME OPERATORS < commands
//
// In: a model that sees, as of cuda_backend_on_host.h, and commands (sessions_on_host.h). Out: answers, and last how
// much memory was left.
#include <iostream>

#include "ort/cuda_backend_on_host.h"
#include "session/model_state.h"
#include "sessions_on_host.h"

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const on_host::Files files{argv[1], argv[2], argv[3], ""};
  size_t live = 0, written = 0;
  try {
    const auto open = [&](const awq2trt::Manifest& manifest, const std::shared_ptr<const awq2trt::Tables>& text) {
      return on_host::open_cuda_backend(files, manifest, &live, text, &written);
    };
    on_host::serve(awq2trt::detail::load_model(files.directory, awq2trt::Verify::kSizes, open), &written);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  std::cout << "left " << live << '\n';
  return 0;
}
