// See prompt.h.
#include "session/prompt.h"

#include <algorithm>

namespace awq2trt {
namespace detail {
namespace {

// The image to which a token belongs; null if it belongs to none.
const PlacedImage* image_at(const std::vector<PlacedImage>& images, size_t token) {
  const auto after = std::upper_bound(images.begin(), images.end(), token,
                                      [](size_t at, const PlacedImage& image) { return at < image.first; });
  if (after == images.begin()) return nullptr;
  const PlacedImage& image = *(after - 1);
  return token < image.first + image.count ? &image : nullptr;
}

}  // namespace

size_t Prompt::image_tokens() const {
  size_t count = 0;
  for (const PlacedImage& image : images) count += image.count;
  return count;
}

const float* Prompt::row_of(size_t token, size_t width) const {
  const PlacedImage* const image = image_at(images, token);
  return image == nullptr ? nullptr : image->pieces->rows.data() + (image->begin + token - image->first) * width;
}

size_t Prompt::uncut(size_t place) const {
  if (image_at(images, place) == nullptr) return place;
  while (place > 0 && image_at(images, place - 1) != nullptr) --place;
  return place;
}

size_t Prompt::longest_row() const {
  size_t longest = 0, row = 0, end = 0;
  for (const PlacedImage& image : images) {
    row = image.first == end ? row + image.count : image.count;
    end = image.first + image.count;
    longest = std::max(longest, row);
  }
  return longest;
}

size_t Prompt::same_tokens(size_t base, const Prompt& other) const {
  const size_t most = std::min(tokens.size() - base, other.tokens.size());
  for (size_t i = 0; i < most; ++i) {
    // Any size but 0 tells the pieces apart.
    if (tokens[base + i] != other.tokens[i] || row_of(base + i, 1) != other.row_of(i, 1)) return i;
  }
  return most;
}

void Prompt::keep(size_t count) {
  tokens.resize(count);
  while (!images.empty() && images.back().first >= count) images.pop_back();
  if (!images.empty()) images.back().count = std::min(images.back().count, count - images.back().first);
}

void Prompt::append(const Prompt& other, size_t from) {
  const size_t begin = tokens.size();
  tokens.insert(tokens.end(), other.tokens.begin() + static_cast<std::ptrdiff_t>(from), other.tokens.end());
  for (const PlacedImage& image : other.images) {
    if (image.first >= from) {
      images.push_back({begin + image.first - from, image.count, image.pieces, image.begin});
    } else if (image.first + image.count > from) {
      // Its first pieces are here already.
      images.back().count = image.count;
    }
  }
}

}  // namespace detail
}  // namespace awq2trt
