// A kit's engine, which its script built on the Jetson after the manifest was written. In: a kit's directory and its
// manifest. Out: the manifest with the engine that awq2trt/kit/finish.sh recorded in model.engine.state.
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

// Fills in the engine's version, and adds its file. Throws Error: kNotFound where the script has not built an engine
// yet, kChangedFile where it built that of another kit.
void take_finished_engine(const std::string& directory, Manifest* manifest);

// The number that getInferLibVersion returns: TensorRT 10.16.0 is 101600, TensorRT-RTX 1.7.1 is 10701.
Version tensorrt_version(int32_t number);

}  // namespace awq2trt
