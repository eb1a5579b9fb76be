// See patches.h.
#include "images/patches.h"

#include <algorithm>
#include <cmath>

namespace awq2trt {
namespace {

// The defaults of transformers' Qwen2VLImageProcessor, and the names that `size` has for pixels.
constexpr char kFewest[] = "shortest_edge", kMost[] = "longest_edge";
constexpr int64_t kFewestPixels = int64_t{56} * 56, kMostPixelsOfImage = int64_t{28} * 28 * 1280;

}  // namespace

Size Patching::resized(const Size& image) const {
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

Grid Patching::grid(const Size& image) const {
  const Size size = resized(image);
  return {size.height / side(), size.width / side()};
}

Pixels Patching::prepare(const ImageView& image) const {
  const Size made = resized(image.size());
  const std::vector<uint8_t> rgb = resample(image, made, filter, {0, 0, made.width, made.height});
  const int64_t size = patch_size, unit = side();
  const Grid pieces = grid(image.size());
  Pixels prepared{{}, {pieces.cells() * merge * merge, kChannels * frames * size * size}, pieces};
  prepared.values.reserve(static_cast<size_t>(prepared.shape[0] * prepared.shape[1]));
  const auto append = [&](int64_t top, int64_t left) {
    for (int64_t channel = 0; channel < kChannels; ++channel) {
      const auto& values = levels[static_cast<size_t>(channel)];
      for (int64_t frame = 0; frame < frames; ++frame) {
        for (int64_t y = top; y < top + size; ++y) {
          const uint8_t* const row = rgb.data() + (y * made.width + left) * kChannels + channel;
          for (int64_t x = 0; x < size; ++x) prepared.values.push_back(values[row[x * kChannels]]);
        }
      }
    }
  };
  for (int64_t piece = 0; piece < pieces.cells(); ++piece) {
    const int64_t top = piece / pieces.columns * unit, left = piece % pieces.columns * unit;
    for (int64_t patch = 0; patch < merge * merge; ++patch) {
      append(top + patch / merge * size, left + patch % merge * size);
    }
  }
  return prepared;
}

Patching read_patching(const KeyReader& reader) {
  if (!reader.flag("do_resize")) reader.refuse("do_resize", "true, since patches have to fill an image");
  const nlohmann::json* const found = reader.find("size");
  const nlohmann::json size =
      found == nullptr ? nlohmann::json{{kFewest, kFewestPixels}, {kMost, kMostPixelsOfImage}} : *found;
  const auto whole = [&](const char* key) { return size.contains(key) && size.at(key).is_number_integer(); };
  if (!size.is_object() || !whole(kFewest) || !whole(kMost)) {
    reader.refuse("size", std::string("numbers under ") + kFewest + " and " + kMost);
  }
  constexpr int64_t most_pixels = kLargestSide * kLargestSide;
  // Within bounds, so that a number of any size can be compared.
  const auto bounded = [&](const char* key) {
    return static_cast<int64_t>(std::clamp(size.at(key).get<double>(), 0.0, static_cast<double>(most_pixels + 1)));
  };
  const int64_t fewest = reader.count("min_pixels", bounded(kFewest), most_pixels);
  const int64_t most = reader.count("max_pixels", bounded(kMost), most_pixels);
  if (fewest < 1 || fewest > most || most > most_pixels) {
    const std::string range =
        "min_pixels (" + std::to_string(fewest) + ") to " + std::to_string(most_pixels) + ", and both positive";
    if (reader.find("max_pixels") != nullptr) reader.refuse("max_pixels", range);
    reader.refuse("size", std::string(kMost) + " from " + range);
  }
  const Filter filter = reader.filter();
  const Levels levels = reader.levels();
  return {fewest,
          most,
          reader.count("patch_size", 14, kLargestSide),
          reader.count("temporal_patch_size", 2, kLargestSide),
          reader.count("merge_size", 2, kLargestSide),
          filter,
          levels};
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
