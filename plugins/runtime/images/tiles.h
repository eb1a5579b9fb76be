// The image processor of models that see an image in tiles and as a whole, and what is written around the pieces of
// every tile. As awq2trt/images/tiles.py and awq2trt/models/vision/tiled.py, which name their sources.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "images/levels.h"
#include "images/prepared.h"
#include "images/processor_keys.h"
#include "images/resample.h"

namespace awq2trt {

constexpr int64_t kMostTiles = 1024;  // of an image; models that make more are refused

struct Tiling {
  int64_t longest;  // pixels along an image's longer side
  int64_t side;     // pixels along a tile's
  bool splits;      // whether an image is cut at all; if not, it is made one tile
  Filter filter;
  Levels levels;

  int64_t most() const;  // tiles of the image that has most, with the whole image
  // With the longer side as it must be, and the shorter one even and in proportion; then with sides of whole tiles.
  Size scaled(const Size& image) const;
  Size filled(const Size& scaled) const;
  Grid grid(const Size& image) const;  // of tiles without the whole image
  // Tiles row by row, and at last the whole image; an image of one tile is only that.
  Pixels prepare(const ImageView& image) const;
};

Tiling read_tiling(const KeyReader& reader);

// Texts before the pieces of each tile, row by row with the whole image last, and the text behind all.
std::vector<std::string> texts_around(const Grid& tiles);

}  // namespace awq2trt
