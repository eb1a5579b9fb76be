// See operators.h.
#include "ort/operators.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

namespace awq2trt {
namespace ort {
namespace {

// Where to look, and whether the user named it.
std::string choose(const std::string& beside, const LoadOptions& options) {
  if (options.trust_directory_library) return beside;
  if (!options.operators_library.empty()) return options.operators_library;
  const char* const variable = std::getenv(kOperatorsVariable);
  return variable != nullptr && *variable != '\0' ? variable : kOperatorsLibrary;
}

}  // namespace

std::string find_operators(const std::string& version, const std::string& directory, const LoadOptions& options) {
  const std::string beside = (std::filesystem::absolute(directory) / kOperatorsLibrary).string();
  const std::string path = choose(beside, options);
  std::error_code problem;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    const std::string reason = dlerror();
    if (path != beside && std::filesystem::exists(beside, problem)) {
      throw Error(ErrorCode::kOperatorsUntrusted,
                  "the operator library is not installed (" + reason +
                      "), and the one in the model's directory is only loaded on request",
                  beside,
                  "install awq2trt's operator library, or trust the directory: LoadOptions::trust_directory_library.");
    }
    throw Error(ErrorCode::kOperatorsMissing, "the model's operators are not here: " + reason, path,
                "pip install awq2trt, and name its libawq2trt_plugins.so in LoadOptions::operators_library or in "
                "AWQ2TRT_PLUGIN_PATH.");
  }
  const auto get_version = reinterpret_cast<const char* (*)()>(dlsym(library, "awq2trt_plugins_version"));
  const std::string found = get_version == nullptr ? "another project" : get_version();
  if (found != version) {
    throw Error(ErrorCode::kOperatorsVersion,
                "the model calls operators of awq2trt " + version + ", but the library here has version " + found, path,
                "pip install awq2trt==" + version + ", or build the model again.");
  }
  return path;
}

}  // namespace ort
}  // namespace awq2trt
