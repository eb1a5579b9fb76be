// In: bytes; the first four are the width and height of an image, the others a preprocessor_config.json. For any bytes,
// the result is a prepared image of the shape that it says, or an Error.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "awq2trt/awq2trt.hpp"
#include "images/processor.h"

namespace {

constexpr size_t kSizes = 4;                                       // bytes
constexpr int64_t kMostPixels = 1 << 18, kMostPrepared = 1 << 18;  // more would only take longer

bool small(const awq2trt::Size& size) {
  return size.width <= kMostPrepared && size.height <= kMostPrepared && size.width * size.height <= kMostPrepared;
}

// Whether little enough is made of an image.
bool is_quick(const awq2trt::ImageProcessor& processor, const awq2trt::Size& image) {
  if (const auto* const patching = processor.as<awq2trt::Patching>()) {
    const awq2trt::Size size = patching->resized(image);
    return small(size) && small({patching->frames, patching->patch_size}) &&
           small({size.width * size.height, patching->frames});
  }
  if (const auto* const tiling = processor.as<awq2trt::Tiling>()) {
    return small(tiling->filled(tiling->scaled(image))) && small({tiling->side, tiling->side});
  }
  if (const auto* const mosaics = processor.as<awq2trt::Mosaics>()) {
    return small(mosaics->whole) && small(mosaics->best(image)) && small(mosaics->steps.resized(mosaics->whole));
  }
  return processor.prepared_size() && small(*processor.prepared_size());
}

// Every patch has a slot, and every slot that is not empty has its patch.
void check_windows(const awq2trt::Patching& patching, const awq2trt::Grid& grid) {
  awq2trt::PreparedImage prepared;
  prepared.grid = grid;
  awq2trt::add_windows(patching.merge, 2, &prepared);
  const auto& windows = prepared.indices[0].values;
  const auto& slots = prepared.indices[1].values;
  for (size_t patch = 0; patch < slots.size(); ++patch) {
    if (windows.at(static_cast<size_t>(slots[patch])) != static_cast<int64_t>(patch)) std::abort();
  }
}

// Pieces are rows that the vision graph makes of the tiles.
void check_order(const awq2trt::Pixels& pixels, const awq2trt::Size& image) {
  constexpr int64_t kSide = 3;
  for (const int64_t row : awq2trt::mosaic_order(kSide, pixels.grid, image)) {
    if (row < 0 || row >= pixels.shape[0] * (kSide * kSide + 1)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kSizes) return 0;
  const int64_t width = data[0] | data[1] << 8, height = data[2] | data[3] << 8;
  try {
    const auto processor = awq2trt::ImageProcessor::parse(
        std::string_view(reinterpret_cast<const char*>(data) + kSizes, size - kSizes), "config");
    if (width * height > kMostPixels) return 0;
    std::vector<uint8_t> rgb(static_cast<size_t>(width * height * awq2trt::kChannels));
    for (size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<uint8_t>(i * 37 ^ i >> 8);
    const awq2trt::ImageView image{rgb.data(), width, height};
    awq2trt::check_image(image, "image");
    if (!is_quick(processor, image.size())) return 0;
    const awq2trt::Pixels pixels = processor.prepare(image);
    size_t count = 1;
    for (const int64_t size : pixels.shape) count *= static_cast<size_t>(size);
    if (pixels.values.size() != count) std::abort();
    if (const auto* const patching = processor.as<awq2trt::Patching>()) check_windows(*patching, pixels.grid);
    if (processor.as<awq2trt::Mosaics>() != nullptr) check_order(pixels, image.size());
  } catch (const awq2trt::Error&) {
  }
  return 0;
}
