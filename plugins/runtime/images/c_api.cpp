// The C interface of prepared images; see c_api.h.
#include "images/c_api.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "awq2trt/awq2trt.hpp"
#include "images/processor.h"

namespace {

using awq2trt::Error;
using awq2trt::ErrorCode;
using awq2trt::ImageProcessor;

constexpr char kWhere[] = "config";

// A fixed buffer for the text of an error, since memory may have run out.
thread_local char last_error[1024] = "";

int32_t fail(ErrorCode code, const char* text) {
  std::strncpy(last_error, text, sizeof(last_error) - 1);
  return static_cast<int32_t>(code);
}

template <typename Work>
int32_t guarded(const Work& work) noexcept {
  last_error[0] = '\0';
  try {
    work();
    return 0;
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kInternal, "out of memory");
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInternal, error.what());
  }
}

}  // namespace

const char* awq2trt_images_last_error(void) { return last_error; }

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
    awq2trt::add_windows(merge, side, &image);
    const auto give = [](const auto& values, auto* to) { std::copy(values.begin(), values.end(), to); };
    give(image.pixels, prepared);
    give(image.indices.at(0).values, places);
    give(image.indices.at(1).values, windows);
    give(image.indices.at(2).values, slots);
  });
}
