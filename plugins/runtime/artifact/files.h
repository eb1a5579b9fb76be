// Compares the files of a model with its manifest: sizes at every load, hashes when they are loaded for the first time
// on this machine, or on request. The user's cache directory ($XDG_CACHE_HOME/awq2trt/verified) records which files
// were hashed, with their sizes and times of change; where it cannot be written, files are hashed at every load.
#pragma once

#include <string>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

// Throws Error: kNotFound for a missing file, kChangedFile for one that has changed since it was written.
void check_files(const std::string& directory, const Manifest& manifest, Verify verify);

}  // namespace awq2trt
