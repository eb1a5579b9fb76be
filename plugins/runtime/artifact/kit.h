// A kit's engines, which its script built on the Jetson after the manifest was written. In: a kit's directory and its
// manifest. Out: the manifest with the engines that awq2trt/kit/finish.sh recorded, model.engine in model.engine.state,
// and so on: one of each graph.
#pragma once

#include <string>
#include <string_view>

#include "artifact/manifest.h"

namespace awq2trt {

// Lines `kit=`, the sha256 of SHA256SUMS; `tensorrt=`, as TensorRT counts its versions; `sha256=`, the engine's.
struct EngineState {
  std::string kit, sha256;
  Version tensorrt;
};

// Throws Error, kMalformed. `where`: the file, for errors.
EngineState parse_engine_state(std::string_view text, const std::string& where);

// Fills in the engines' version, and adds their files. Throws Error: kNotFound where the script has not built one yet,
// kChangedFile where it built that of another kit, kEngineVersion where two are of different versions.
void take_finished_engines(const std::string& directory, Manifest* manifest);

// The number that getInferLibVersion returns: TensorRT 10.16.0 is 101600, TensorRT-RTX 1.7.1 is 10701.
Version tensorrt_version(int32_t number);

}  // namespace awq2trt
