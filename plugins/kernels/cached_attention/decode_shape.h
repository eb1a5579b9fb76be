// Sizes that the decode kernel, the choice of a configuration and the launch agree on; host and device.
#pragma once

#include <cstddef>

#include "kernels/cached_attention/cached_attention.h"

namespace awq2trt {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeSlotTile = 16;  // slots of a warp's tile
constexpr int kDecodeRows = 8;       // rows of a block: pairs of a new token and a query head of one key-value head

// Offsets of the parts of the workspace, in bytes. Queries come first.
struct WorkspaceLayout {
  WorkspaceLayout(const AttentionProblem& problem, AttentionKernel kernel, int splits);
  size_t partials, maxima, bytes;
};

}  // namespace awq2trt
