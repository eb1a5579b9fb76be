// Loads a plugin library as TensorRT does and prints its contents, one per line: library version, CUDA architectures,
// CUDA runtime, then "creator NAME VERSION NAMESPACE". For a library of another CPU, under an emulator.
#include <dlfcn.h>

#include <cstdio>

#include <NvInferRuntime.h>

namespace {

template <typename Function>
Function find(void* library, const char* name) {
  const auto function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) std::fprintf(stderr, "%s\n", dlerror());
  return function;
}

}  // namespace

int main(int argc, char** argv) {
  void* const library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "usage: list_creators LIBRARY");
    return 1;
  }
  const auto version = find<const char* (*)()>(library, "awq2trt_plugins_version");
  const auto architectures = find<const char* (*)()>(library, "awq2trt_plugins_architectures");
  const auto cuda_version = find<int (*)()>(library, "awq2trt_cuda_version");
  const auto get_creators = find<nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&)>(library, "getCreators");
  const auto set_logger_finder = find<void (*)(nvinfer1::ILoggerFinder*)>(library, "setLoggerFinder");
  if (!version || !architectures || !cuda_version || !get_creators || !set_logger_finder) return 1;

  std::printf("version %s\narchitectures %s\ncuda %d\n", version(), architectures(), cuda_version());
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* const creators = get_creators(count);
  for (int32_t index = 0; index < count; ++index) {
    const auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[index]);
    std::printf("creator %s %s %s\n", creator->getPluginName(), creator->getPluginVersion(),
                creator->getPluginNamespace());
  }
  return 0;
}
