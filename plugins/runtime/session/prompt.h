// Tokens, and the images among them. Two image tokens are the same only if they stand for the same piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "images/prepared.h"

namespace awq2trt {
namespace detail {

// An image as the decoder sees it.
struct SeenImage {
  std::vector<float> rows;  // [count, width], that take the place of its tokens' own
  size_t count = 0;
  Grid grid = {};
  std::vector<std::string> texts;  // before the pieces of each tile and behind those of the last; or nothing
  size_t around = 0;               // tokens of those texts

  // Pieces whose tokens stand side by side.
  size_t run() const { return texts.empty() ? count : count / (texts.size() - 1); }
};

using Pieces = std::shared_ptr<const SeenImage>;

// An image, or a part of it whose tokens stand side by side.
struct PlacedImage {
  size_t first, count;  // its tokens; fewer than there are pieces if later ones were forgotten
  Pieces pieces;
  size_t begin = 0;  // the first one's piece
};

struct Prompt {
  std::vector<int32_t> tokens;
  std::vector<PlacedImage> images;  // in the order of their places

  size_t size() const { return tokens.size(); }
  size_t image_tokens() const;
  // The row that stands for a token; null for a token that has its own.
  const float* row_of(size_t token, size_t width) const;
  // The last place up to this one that is not between image tokens that stand side by side.
  size_t uncut(size_t place) const;
  // The most image tokens that stand side by side.
  size_t longest_row() const;
  // How many tokens from `base` on are those with which `other` begins.
  size_t same_tokens(size_t base, const Prompt& other) const;

  void keep(size_t count);  // of its first tokens
  // Appends what `other` has from the token `from` on, which is the first of what follows there.
  void append(const Prompt& other, size_t from = 0);
};

}  // namespace detail
}  // namespace awq2trt
