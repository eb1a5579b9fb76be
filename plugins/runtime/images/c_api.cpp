// The C interface of prepared images; see c_api.h.
#include "images/c_api.h"

#include <algorithm>

#include "images/processor.h"
#include "library/c_calls.h"

namespace {

using awq2trt::ImageProcessor;
using awq2trt::c_calls::guarded;

constexpr char kWhere[] = "config";

template <typename Numbers, typename Number>
void give(const Numbers& numbers, Number* to) {
  std::copy(numbers.begin(), numbers.end(), to);
}

}  // namespace

const char* awq2trt_images_last_error(void) { return awq2trt::c_calls::last_error; }

int32_t awq2trt_images_size(const char* config, int64_t* width, int64_t* height) {
  return guarded([&] {
    const auto size = ImageProcessor::parse(config, kWhere).prepared_size().value_or(awq2trt::Size{0, 0});
    *width = size.width;
    *height = size.height;
  });
}

int32_t awq2trt_images_shape(const char* config, const uint8_t* rgb, int64_t width, int64_t height, int64_t* rank,
                             int64_t* shape, int64_t* rows, int64_t* columns) {
  return guarded([&] {
    const awq2trt::Pixels pixels = ImageProcessor::parse(config, kWhere).prepare({rgb, width, height});
    *rank = static_cast<int64_t>(pixels.shape.size());
    give(pixels.shape, shape);
    *rows = pixels.grid.rows;
    *columns = pixels.grid.columns;
  });
}

int32_t awq2trt_images_prepare(const char* config, const uint8_t* rgb, int64_t width, int64_t height, float* prepared) {
  return guarded([&] { give(ImageProcessor::parse(config, kWhere).prepare({rgb, width, height}).values, prepared); });
}

int32_t awq2trt_images_windows(int64_t rows, int64_t columns, int64_t merge, int64_t side, int64_t* places,
                               int64_t* windows, int64_t* slots) {
  return guarded([&] {
    awq2trt::PreparedImage image;
    image.grid = {rows, columns};
    awq2trt::add_places(merge, &image);
    awq2trt::add_windows(merge, side, &image);
    give(image.indices.at(0).values, places);
    give(image.indices.at(1).values, windows);
    give(image.indices.at(2).values, slots);
  });
}

int32_t awq2trt_images_order(int64_t side, int64_t rows, int64_t columns, int64_t width, int64_t height, int64_t* count,
                             int64_t* order) {
  return guarded([&] {
    const std::vector<int64_t> made = awq2trt::mosaic_order(side, {rows, columns}, {width, height});
    *count = static_cast<int64_t>(made.size());
    if (order != nullptr) give(made, order);
  });
}
