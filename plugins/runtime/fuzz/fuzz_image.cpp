// In: bytes; the first four are the width and height of an image, the others a preprocessor_config.json. For any bytes,
// the result is a prepared image of the size that the processor promised, or an Error.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "awq2trt/awq2trt.hpp"
#include "images/processor.h"

namespace {

constexpr size_t kSizes = 4;                                       // bytes
constexpr int64_t kMostPixels = 1 << 18, kMostPrepared = 1 << 18;  // more would only take longer

// Every patch has a slot, and every slot that is not empty has its patch.
void divide(const awq2trt::ImageProcessor& processor, const awq2trt::ImageView& image) {
  const awq2trt::Patching& patching = *processor.patching();
  const awq2trt::Size size = patching.resized(image);
  const int64_t most = std::max({size.width, size.height, patching.frames, patching.patch_size});
  if (most > kMostPrepared || size.width * size.height > kMostPrepared ||
      size.width * size.height * patching.frames > kMostPrepared) {
    return;
  }
  awq2trt::PreparedImage prepared = processor.divide(image);
  awq2trt::add_windows(patching.merge, 2, &prepared);
  const auto& windows = prepared.indices[0].values;
  const auto& slots = prepared.indices[1].values;
  if (prepared.pixels.size() != static_cast<size_t>(prepared.shape[0] * prepared.shape[1])) std::abort();
  for (size_t patch = 0; patch < slots.size(); ++patch) {
    if (windows.at(static_cast<size_t>(slots[patch])) != static_cast<int64_t>(patch)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < kSizes) return 0;
  const int64_t width = data[0] | data[1] << 8, height = data[2] | data[3] << 8;
  try {
    const auto processor = awq2trt::ImageProcessor::parse(
        std::string_view(reinterpret_cast<const char*>(data) + kSizes, size - kSizes), "config");
    const auto made = processor.prepared_size();
    const auto& patching = processor.patching();
    if (width * height > kMostPixels || (!made && !patching)) return 0;
    std::vector<uint8_t> rgb(static_cast<size_t>(width * height * awq2trt::kChannels));
    for (size_t i = 0; i < rgb.size(); ++i) rgb[i] = static_cast<uint8_t>(i * 37 ^ i >> 8);
    const awq2trt::ImageView image{rgb.data(), width, height};
    awq2trt::check_image(image, "image");
    if (patching) {
      divide(processor, image);
      return 0;
    }
    if (made->width * made->height > kMostPrepared) return 0;
    const auto prepared = processor.prepare(image);
    if (prepared.size() != static_cast<size_t>(awq2trt::kChannels * made->width * made->height)) std::abort();
  } catch (const awq2trt::Error&) {
  }
  return 0;
}
