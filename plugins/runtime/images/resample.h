// Resizes images as Pillow 13 does, bit for bit; earlier versions, which always begin with the rows, differ by one here
// and there in images that lose more height than width. In: 8-bit RGB, the new size, a filter, and the window of the
// result that is wanted. Out: that window; what is outside of it costs nothing.
//
// Source: `ImagingResample` in src/libImaging/Resample.c of Pillow 13.0, and for the nearest pixel `ImagingScaleAffine`
// in src/libImaging/Geometry.c: https://github.com/python-pillow/Pillow.
#pragma once

#include <cstdint>
#include <vector>

namespace awq2trt {

constexpr int64_t kChannels = 3;  // red, green, blue

struct Size {
  int64_t width, height;
};

// 8-bit RGB, rows from the top, [height, width, 3].
struct ImageView {
  const uint8_t* rgb;
  int64_t width, height;

  Size size() const { return {width, height}; }
};

// The numbers are those of Pillow.
enum class Filter { kNearest = 0, kLanczos = 1, kBilinear = 2, kBicubic = 3, kBox = 4, kHamming = 5 };

struct Window {
  int64_t left, top, width, height;
};

// `window` lies inside of an image of `size`. Returns [window.height, window.width, 3].
std::vector<uint8_t> resample(const ImageView& image, const Size& size, Filter filter, const Window& window);

}  // namespace awq2trt
