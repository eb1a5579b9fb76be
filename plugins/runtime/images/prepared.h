// An image as a vision graph takes it, whatever the family; as in awq2trt/models/vision/prepared.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace awq2trt {

// Pieces of an image, by which a decoder with positions of three numbers places them; 0 x 0 of an image whose pieces
// are counted like words.
struct Grid {
  int64_t rows = 0, columns = 0;

  int64_t cells() const { return rows * columns; }
};

// An input of the graph beside the pixels.
struct Indices {
  std::string name;
  std::vector<int64_t> values, shape;
};

struct PreparedImage {
  std::vector<float> pixels;
  std::vector<int64_t> shape;  // of the pixels
  int64_t pieces = 0;
  Grid grid;
  std::vector<Indices> indices;
};

}  // namespace awq2trt
