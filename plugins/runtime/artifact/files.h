// The files of a model against its manifest: sizes at every load, hashes when they are loaded for the first time on
// this machine, or when asked for. That files were hashed is noted in the user's cache directory
// ($XDG_CACHE_HOME/awq2trt/verified), together with their sizes and times of change; where that cannot be written, they
// are hashed at every load.
#pragma once

#include <string>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

// Throws Error: kNotFound for a missing file, kChangedFile for one that is not what was written.
void check_files(const std::string& directory, const Manifest& manifest, Verify verify);

}  // namespace awq2trt
