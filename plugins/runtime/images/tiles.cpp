// See tiles.h.
#include "images/tiles.h"

#include <algorithm>

namespace awq2trt {
namespace {

constexpr int64_t kDefaultSide = 364, kDefaultLongest = 4 * kDefaultSide;
constexpr ChannelNumbers kHalf{0.5, 0.5, 0.5};
constexpr int64_t kLongestAllowed = 4096;  // whatever the file says (MAX_IMAGE_SIZE of transformers)

constexpr char kBeforeTile[] = "<fake_token_around_image>";
constexpr char kWhole[] = "<global-img>";

int64_t even(int64_t length) { return length + length % 2; }

int64_t tiles_along(int64_t length, int64_t side) { return (length + side - 1) / side; }

double proportion_of(const Size& size) { return static_cast<double>(size.width) / static_cast<double>(size.height); }

int64_t times(int64_t length, double factor) { return static_cast<int64_t>(static_cast<double>(length) * factor); }

int64_t over(int64_t length, double factor) { return static_cast<int64_t>(static_cast<double>(length) / factor); }

Size at_least_one(const Size& size) { return {std::max<int64_t>(size.width, 1), std::max<int64_t>(size.height, 1)}; }

std::vector<uint8_t> resized(const ImageView& image, const Size& size, Filter filter) {
  return resample(image, size, filter, {0, 0, size.width, size.height});
}

}  // namespace

int64_t Tiling::most() const {
  const int64_t along = tiles_along(std::min(even(longest), kLongestAllowed), side);
  return along > 1 && splits ? along * along + 1 : 1;
}

Size Tiling::scaled(const Size& image) const {
  const double proportion = proportion_of(image);
  const Size size = at_least_one(image.width >= image.height ? Size{longest, even(over(longest, proportion))}
                                                             : Size{even(times(longest, proportion)), longest});
  if (std::max(size.width, size.height) <= kLongestAllowed) return size;
  const double made = proportion_of(size);
  return at_least_one(size.width >= size.height ? Size{kLongestAllowed, over(kLongestAllowed, made)}
                                                : Size{times(kLongestAllowed, made), kLongestAllowed});
}

Size Tiling::filled(const Size& scaled) const {
  const double proportion = proportion_of(scaled);
  const auto whole = [this](int64_t length) { return tiles_along(length, side) * side; };
  if (scaled.width >= scaled.height) {
    const int64_t width = whole(scaled.width);
    return {width, whole(over(width, proportion))};
  }
  const int64_t height = whole(scaled.height);
  return {whole(times(height, proportion)), height};
}

Grid Tiling::grid(const Size& image) const {
  if (!splits) return {1, 1};
  const Size size = filled(scaled(image));
  return {size.height / side, size.width / side};
}

Pixels Tiling::prepare(const ImageView& image) const {
  Size size = scaled(image.size());
  std::vector<uint8_t> rgb = resized(image, size, filter);
  if (splits) {
    const Size full = filled(size);
    rgb = resized({rgb.data(), size.width, size.height}, full, filter);
    size = full;
  }
  const Grid tiles = grid(image.size());
  const ImageView large{rgb.data(), size.width, size.height};
  Pixels prepared{{}, {tiles.cells() + (tiles.cells() > 1 ? 1 : 0), kChannels, side, side}, tiles};
  prepared.values.reserve(static_cast<size_t>(prepared.shape[0] * kChannels * side * side));
  if (splits) {
    for (int64_t tile = 0; tile < tiles.cells(); ++tile) {
      const Window window{tile % tiles.columns * side, tile / tiles.columns * side, side, side};
      append_planes(large, window, levels, &prepared.values);
    }
  }
  if (!splits || tiles.cells() > 1) {
    const std::vector<uint8_t> whole = resized(large, {side, side}, filter);
    append_planes({whole.data(), side, side}, {0, 0, side, side}, levels, &prepared.values);
  }
  return prepared;
}

Tiling read_tiling(const KeyReader& reader) {
  if (!reader.flag("do_resize")) {
    reader.refuse("do_resize", "true, or a large image would have tiles without a limit");
  }
  const int64_t longest = reader.longest_edge("size", kDefaultLongest);
  const int64_t side = reader.longest_edge("max_image_size", kDefaultSide);
  const bool splits = reader.flag("do_image_splitting");
  const Filter filter = reader.filter(Filter::kLanczos);
  const Tiling tiling{longest, side, splits, filter, reader.levels(kHalf, kHalf)};
  if (tiling.most() > kMostTiles) {
    reader.refuse("max_image_size", "tiles of which a square image of " + std::to_string(longest) + " pixels has " +
                                        std::to_string(kMostTiles) + " at most");
  }
  return tiling;
}

std::vector<std::string> texts_around(const Grid& tiles) {
  const std::string before(kBeforeTile), whole = before + kWhole;
  if (tiles.cells() == 1) return {whole, before};
  std::vector<std::string> texts;
  for (int64_t row = 0; row < tiles.rows; ++row) {
    for (int64_t column = 0; column < tiles.columns; ++column) {
      const std::string end_of_row = row > 0 && column == 0 ? "\n" : "";
      texts.push_back(end_of_row + before + "<row_" + std::to_string(row + 1) + "_col_" + std::to_string(column + 1) +
                      ">");
    }
  }
  texts.push_back("\n\n" + whole);
  texts.push_back(before);
  return texts;
}

}  // namespace awq2trt
