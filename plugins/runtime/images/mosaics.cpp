// See mosaics.h.
#include "images/mosaics.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "images/tiles.h"

namespace awq2trt {
namespace {

using nlohmann::json;

constexpr char kPinpoints[] = "image_grid_pinpoints";
constexpr Size kDefaultSizes[] = {{672, 336}, {336, 672}, {672, 672}, {336, 1008}, {1008, 336}};

double ratio(int64_t length, int64_t other) { return static_cast<double>(length) / static_cast<double>(other); }

int64_t up(int64_t length, double factor) {
  return static_cast<int64_t>(std::ceil(static_cast<double>(length) * factor));
}

// Cuts off what is behind the point, as transformers does: of a number that is rounded to seven decimals first.
int64_t whole_of(double length) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.7f", length);
  return static_cast<int64_t>(std::strtod(text, nullptr));
}

bool is_length(const json& value, int64_t side) {
  const double most = static_cast<double>(kMostTiles * side);
  return value.is_number_integer() && value.get<double>() > 0 && value.get<double>() <= most &&
         value.get<int64_t>() % side == 0;
}

// None if they make no sense.
std::vector<Size> sizes_in(const json* list, int64_t side) {
  std::vector<Size> sizes;
  if (list == nullptr) {
    sizes.assign(std::begin(kDefaultSizes), std::end(kDefaultSizes));
  } else if (list->is_array()) {
    for (const json& size : *list) {
      if (!size.is_array() || size.size() != 2 || !is_length(size[0], side) || !is_length(size[1], side)) return {};
      sizes.push_back({size[1].get<int64_t>(), size[0].get<int64_t>()});
    }
  }
  const bool fit = std::all_of(sizes.begin(), sizes.end(), [&](const Size& size) {
    return size.width % side == 0 && size.height % side == 0 && size.width * size.height <= kMostTiles * side * side;
  });
  return fit ? sizes : std::vector<Size>();
}

}  // namespace

Size Mosaics::best(const Size& image) const {
  const auto kept_and_wasted = [&](const Size& size) {
    const double scale = std::min(ratio(size.width, image.width), ratio(size.height, image.height));
    const auto scaled = [&](int64_t length) { return static_cast<int64_t>(static_cast<double>(length) * scale); };
    const int64_t kept = std::min(scaled(image.width) * scaled(image.height), image.width * image.height);
    return std::pair(kept, kept - size.width * size.height);
  };
  return *std::max_element(sizes.begin(), sizes.end(), [&](const Size& one, const Size& other) {
    return kept_and_wasted(one) < kept_and_wasted(other);
  });
}

Grid Mosaics::grid(const Size& image) const {
  const Size size = best(image);
  return {size.height / side, size.width / side};
}

// The image in proportion, with black margins.
std::vector<uint8_t> Mosaics::large(const ImageView& image, const Size& size) const {
  const double by_height = ratio(size.height, image.height), by_width = ratio(size.width, image.width);
  const Size fitted = by_width < by_height ? Size{size.width, std::min(up(image.height, by_width), size.height)}
                                           : Size{std::min(up(image.width, by_height), size.width), size.height};
  const std::vector<uint8_t> part = resample(image, fitted, steps.filter, {0, 0, fitted.width, fitted.height});
  std::vector<uint8_t> rgb(static_cast<size_t>(kChannels * size.width * size.height));
  const int64_t left = (size.width - fitted.width) / 2, top = (size.height - fitted.height) / 2;
  for (int64_t y = 0; y < fitted.height; ++y) {
    const auto row = part.begin() + y * fitted.width * kChannels;
    std::copy_n(row, fitted.width * kChannels, rgb.begin() + ((top + y) * size.width + left) * kChannels);
  }
  return rgb;
}

Pixels Mosaics::prepare(const ImageView& image) const {
  const Size size = best(image.size());
  const Grid tiles = grid(image.size());
  Pixels prepared{{}, {tiles.cells() + 1, kChannels, side, side}, tiles};
  prepared.values.reserve(static_cast<size_t>(prepared.shape[0] * kChannels * side * side));
  const auto append = [&](const std::vector<uint8_t>& rgb, const Size& of) {
    const Pixels tile = steps.prepare({rgb.data(), of.width, of.height});
    prepared.values.insert(prepared.values.end(), tile.values.begin(), tile.values.end());
  };
  append(resample(image, whole, steps.filter, {0, 0, whole.width, whole.height}), whole);
  const std::vector<uint8_t> rgb = large(image, size);
  const ImageView view{rgb.data(), size.width, size.height};
  for (int64_t tile = 0; tile < tiles.cells(); ++tile) {
    const Window window{tile % tiles.columns * side, tile / tiles.columns * side, side, side};
    append(resample(view, size, steps.filter, window), {side, side});
  }
  return prepared;
}

Mosaics read_mosaics(const KeyReader& reader) {
  const Steps steps = read_steps(reader);
  const Resizing resizing = reader.resizing();
  const int64_t edge = resizing.shortest_edge.value_or(0);
  const Size whole = resizing.size.value_or(Size{edge, edge}), tile = reader.sides("crop_size");
  const auto made_tile = [&](const Size& size) {
    const Size made = steps.made(size);
    return made.width == tile.width && made.height == tile.width;
  };
  if (tile.width != tile.height || !made_tile(whole) || !made_tile(tile)) {
    reader.refuse("crop_size", "a square, to which size " + std::to_string(whole.height) + " x " +
                                   std::to_string(whole.width) + " is cut or resized");
  }
  std::vector<Size> sizes = sizes_in(reader.find(kPinpoints), tile.width);
  if (sizes.empty()) {
    reader.refuse(kPinpoints, "heights and widths that are multiples of the tower's " + std::to_string(tile.width) +
                                  " pixels, " + std::to_string(kMostTiles) + " tiles at most");
  }
  return {std::move(sizes), tile.width, whole, steps};
}

std::vector<int64_t> mosaic_order(int64_t side, const Grid& tiles, const Size& image) {
  const int64_t newline = side * side, rows = tiles.rows * side, columns = tiles.columns * side;
  int64_t above = 0, beside = 0;  // rows and columns of pieces in the margins on one side
  if (ratio(image.width, image.height) > ratio(columns, rows)) {
    above = (rows - whole_of(static_cast<double>(image.height) * ratio(columns, image.width))) / 2;
  } else {
    beside = (columns - whole_of(static_cast<double>(image.width) * ratio(rows, image.height))) / 2;
  }
  std::vector<int64_t> order(static_cast<size_t>(newline));
  for (size_t piece = 0; piece < order.size(); ++piece) order[piece] = static_cast<int64_t>(piece);
  for (int64_t row = above; row < rows - above; ++row) {
    for (int64_t column = beside; column < columns - beside; ++column) {
      // The whole image is before the tiles, and every tile has a row for the end of a row behind its pieces.
      const int64_t tile = 1 + row / side * tiles.columns + column / side;
      order.push_back(tile * (newline + 1) + row % side * side + column % side);
    }
    order.push_back(newline);
  }
  return order;
}

}  // namespace awq2trt
