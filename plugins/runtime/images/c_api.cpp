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
