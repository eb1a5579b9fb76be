// An image before and after it is arranged for a vision graph, whatever the family; as in
// awq2trt/models/vision/prepared.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace awq2trt {

// Rows and columns: of the pieces of an image, by which a decoder with positions of three numbers places them, or of
// tiles; 0 x 0 of an image that has neither.
struct Grid {
  int64_t rows = 0, columns = 0;

  int64_t cells() const { return rows * columns; }
};

// What an image processor makes of an image.
struct Pixels {
  std::vector<float> values;
  // [1, 3, height, width]; of patches [patches, numbers of a patch]; of tiles [tiles, 3, side, side], with the whole
  // image as one of them.
  std::vector<int64_t> shape;
  Grid grid = {};  // of the pieces that patches become, or of tiles without the whole image
};

// An input of the graph beside the pixels.
struct Indices {
  std::string name;
  std::vector<int64_t> values, shape;
};

struct PreparedImage {
  std::vector<float> pixels;
  std::vector<int64_t> shape;  // of the pixels; the graph takes one tile at a time
  int64_t pieces = 0;
  Grid grid = {};  // of the pieces; 0 x 0 if they are counted like words
  std::vector<Indices> indices = {};
  // What is written before the pieces of each tile and behind those of the last; nothing in most families.
  std::vector<std::string> texts = {};
  // Which rows of what the graph makes of all tiles are the pieces; empty if all are, in their order.
  std::vector<int64_t> order = {};
};

}  // namespace awq2trt
