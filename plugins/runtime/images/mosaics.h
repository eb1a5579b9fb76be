// The image processor of models that see an image made smaller, then its tiles as one large image, and the order of
// their pieces. As awq2trt/images/mosaics.py and awq2trt/models/vision/mosaic.py, which name their sources.
#pragma once

#include <cstdint>
#include <vector>

#include "images/prepared.h"
#include "images/processor_keys.h"
#include "images/resample.h"
#include "images/steps.h"

namespace awq2trt {

struct Mosaics {
  std::vector<Size> sizes;  // that the large image may be given, all of them whole tiles
  int64_t side;             // pixels along a tile's side
  Size whole;               // to which the whole image is resized first, whatever its proportion
  Steps steps;              // what is then done to it and to every tile

  // The first of the sizes that keep most of an image's pixels and waste fewest of their own.
  Size best(const Size& image) const;
  Grid grid(const Size& image) const;  // of tiles without the whole image
  // The whole image, then tiles row by row.
  Pixels prepare(const ImageView& image) const;

 private:
  std::vector<uint8_t> large(const ImageView& image, const Size& size) const;
};

Mosaics read_mosaics(const KeyReader& reader);

// Which of the rows that the vision graph makes of all tiles are an image's pieces, in their order: those of the whole
// image, then those of the large one without its margins, with one that ends a row behind each row. `side`: pieces
// along a tile's side; `tiles`: their grid; `image`: the size before it was prepared.
std::vector<int64_t> mosaic_order(int64_t side, const Grid& tiles, const Size& image);

}  // namespace awq2trt
