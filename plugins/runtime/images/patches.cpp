// See patches.h.
#include "images/patches.h"

#include <algorithm>
#include <cmath>

namespace awq2trt {

Size Patching::resized(const ImageView& image) const {
  const int64_t unit = side();
  const auto width = static_cast<double>(image.width), height = static_cast<double>(image.height);
  const auto piece = static_cast<double>(unit);
  // Halves become even numbers, as in Python.
  const auto nearest = [&](double length) { return static_cast<int64_t>(std::nearbyint(length / piece)) * unit; };
  const Size size{nearest(width), nearest(height)};
  if (size.width * size.height > most) {
    const double factor = std::sqrt(height * width / static_cast<double>(most));
    const auto smaller = [&](double length) {
      return std::max(unit, static_cast<int64_t>(std::floor(length / factor / piece)) * unit);
    };
    return {smaller(width), smaller(height)};
  }
  if (size.width * size.height < fewest) {
    const double factor = std::sqrt(static_cast<double>(fewest) / (height * width));
    const auto larger = [&](double length) { return static_cast<int64_t>(std::ceil(length * factor / piece)) * unit; };
    return {larger(width), larger(height)};
  }
  return size;
}

PreparedImage cut_patches(const ImageView& image, const Patching& patching, const Levels& levels) {
  const int64_t size = patching.patch_size, merge = patching.merge, unit = patching.side();
  PreparedImage prepared;
  prepared.grid = {image.height / unit, image.width / unit};
  prepared.pieces = prepared.grid.cells();
  prepared.shape = {prepared.pieces * merge * merge, kChannels * patching.frames * size * size};
  prepared.pixels.reserve(static_cast<size_t>(prepared.shape[0] * prepared.shape[1]));
  const auto append = [&](int64_t top, int64_t left) {
    for (int64_t channel = 0; channel < kChannels; ++channel) {
      const auto& values = levels[static_cast<size_t>(channel)];
      for (int64_t frame = 0; frame < patching.frames; ++frame) {
        for (int64_t y = top; y < top + size; ++y) {
          const uint8_t* const row = image.rgb + (y * image.width + left) * kChannels + channel;
          for (int64_t x = 0; x < size; ++x) prepared.pixels.push_back(values[row[x * kChannels]]);
        }
      }
    }
  };
  for (int64_t piece = 0; piece < prepared.pieces; ++piece) {
    const int64_t top = piece / prepared.grid.columns * unit, left = piece % prepared.grid.columns * unit;
    for (int64_t patch = 0; patch < merge * merge; ++patch) {
      append(top + patch / merge * size, left + patch % merge * size);
    }
  }
  return prepared;
}

void add_places(int64_t merge, PreparedImage* image) {
  const int64_t square = merge * merge, patches = image->grid.cells() * square, columns = image->grid.columns;
  Indices places{kPatchPlaces, {}, {patches, 2}};
  places.values.reserve(static_cast<size_t>(patches * 2));
  for (int64_t patch = 0; patch < patches; ++patch) {
    const int64_t piece = patch / square, within = patch % square;
    places.values.push_back(piece / columns * merge + within / merge);
    places.values.push_back(piece % columns * merge + within % merge);
  }
  image->indices.push_back(std::move(places));
}

void add_windows(int64_t merge, int64_t side, PreparedImage* image) {
  const Grid& grid = image->grid;
  const int64_t square = merge * merge, patches = grid.cells() * square, slots = side * side * square;
  const Grid windows{(grid.rows + side - 1) / side, (grid.columns + side - 1) / side};
  Indices of_window{kWindowPatches, {}, {windows.cells(), slots}};
  Indices slot_of{kPatchSlots, std::vector<int64_t>(static_cast<size_t>(patches)), {patches}};
  of_window.values.assign(static_cast<size_t>(windows.cells() * slots), -1);
  for (int64_t patch = 0; patch < patches; ++patch) {
    const int64_t row = patch / square / grid.columns, column = patch / square % grid.columns;
    const int64_t window = row / side * windows.columns + column / side;
    const int64_t slot = window * slots + (row % side * side + column % side) * square + patch % square;
    of_window.values[static_cast<size_t>(slot)] = patch;
    slot_of.values[static_cast<size_t>(patch)] = slot;
  }
  image->indices.push_back(std::move(of_window));
  image->indices.push_back(std::move(slot_of));
}

}  // namespace awq2trt
