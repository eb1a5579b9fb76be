// Images of any size as patches: their new size, the order of patches, and which of them share a window. In: an image.
// Out: what a vision graph reads of it, in the order of awq2trt/images/patches.py, whose tests compare the two, and
// awq2trt/models/vision/{patch_layout,windowed}.py.
#pragma once

#include <cstdint>

#include "images/levels.h"
#include "images/prepared.h"
#include "images/processor_keys.h"
#include "images/resample.h"

namespace awq2trt {

constexpr char kPatchPlaces[] = "patch_places";
constexpr char kWindowPatches[] = "window_patches";
constexpr char kPatchSlots[] = "patch_slots";

// How a processor divides images.
struct Patching {
  int64_t fewest, most;  // pixels that an image gets if it has fewer or more
  int64_t patch_size;
  int64_t frames;  // of a patch, which are all the same
  int64_t merge;   // patches along the side of a piece
  Filter filter;
  Levels levels;

  int64_t side() const { return patch_size * merge; }
  // Both sides are whole pieces.
  Size resized(const Size& image) const;
  Grid grid(const Size& image) const;  // of pieces
  // Patches, piece by piece: [patches, channels, frames, patch_size, patch_size].
  Pixels prepare(const ImageView& image) const;
};

Patching read_patching(const KeyReader& reader);

// Adds an input of the graph: row and column of each patch.
void add_places(int64_t merge, PreparedImage* image);
// Adds the inputs of a graph with windows of `side` pieces: the patches in the slots of each window, -1 in one that an
// edge leaves empty, and the slot of each patch.
void add_windows(int64_t merge, int64_t side, PreparedImage* image);

}  // namespace awq2trt
