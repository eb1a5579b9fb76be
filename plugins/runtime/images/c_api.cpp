// The C interface of prepared images; see c_api.h.
#include "images/c_api.h"

#include <algorithm>

#include "images/processor.h"
#include "library/c_calls.h"

namespace {

using awq2trt::ImageProcessor;
using awq2trt::c_calls::guarded;

constexpr char kWhere[] = "config";

}  // namespace

const char* awq2trt_images_last_error(void) { return awq2trt::c_calls::last_error; }

int32_t awq2trt_images_size(const char* config, int64_t* width, int64_t* height) {
  return guarded([&] {
    const auto size = ImageProcessor::parse(config, kWhere).prepared_size().value_or(awq2trt::Size{0, 0});
    *width = size.width;
    *height = size.height;
  });
}

int32_t awq2trt_images_prepare(const char* config, const uint8_t* rgb, int64_t width, int64_t height, float* prepared) {
  return guarded([&] {
    const auto made = ImageProcessor::parse(config, kWhere).prepare({rgb, width, height});
    std::copy(made.begin(), made.end(), prepared);
  });
}

int32_t awq2trt_images_grid(const char* config, int64_t width, int64_t height, int64_t* rows, int64_t* columns,
                            int64_t* numbers) {
  return guarded([&] {
    const awq2trt::Patching patching = ImageProcessor::parse(config, kWhere).patching().value();
    const awq2trt::Size size = patching.resized({nullptr, width, height});
    *rows = size.height / patching.patch_size;
    *columns = size.width / patching.patch_size;
    *numbers = awq2trt::kChannels * patching.frames * patching.patch_size * patching.patch_size;
  });
}

int32_t awq2trt_images_divide(const char* config, const uint8_t* rgb, int64_t width, int64_t height, int64_t side,
                              float* prepared, int64_t* places, int64_t* windows, int64_t* slots) {
  return guarded([&] {
    const ImageProcessor processor = ImageProcessor::parse(config, kWhere);
    const int64_t merge = processor.patching().value().merge;
    awq2trt::PreparedImage image = processor.divide({rgb, width, height});
    awq2trt::add_places(merge, &image);
    awq2trt::add_windows(merge, side, &image);
    const auto give = [](const auto& values, auto* to) { std::copy(values.begin(), values.end(), to); };
    give(image.pixels, prepared);
    give(image.indices.at(0).values, places);
    give(image.indices.at(1).values, windows);
    give(image.indices.at(2).values, slots);
  });
}
