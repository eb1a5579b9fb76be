// The library of custom operators that a model calls. In: the version that its manifest names, and where to look. Out:
// its path, for ONNX Runtime to load.
#pragma once

#include <string>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace ort {

constexpr char kOperatorsLibrary[] = "libawq2trt_plugins.so";
constexpr char kOperatorsVariable[] = "AWQ2TRT_PLUGIN_PATH";

// LoadOptions::operators_library, else AWQ2TRT_PLUGIN_PATH, else what the loader finds; with
// LoadOptions::trust_directory_library, the one in the model's directory comes before all others. A library in a
// model's directory is code that somebody else chose, and a hash next to it proves nothing. Throws Error:
// kOperatorsMissing, kOperatorsVersion, kOperatorsUntrusted.
std::string find_operators(const std::string& version, const std::string& directory, const LoadOptions& options);

}  // namespace ort
}  // namespace awq2trt
