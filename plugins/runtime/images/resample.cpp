// See resample.h. A pass along the rows and a pass along the columns, in whole numbers, as in Pillow: pixels between
// the passes have 8 bits, weights have 22 bits behind the point.
#include "images/resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace awq2trt {
namespace {

constexpr int kPrecisionBits = 32 - 8 - 2;  // 8 bits of a pixel, one for the sign, one for sums above 1
constexpr double kPi = 3.14159265358979323846;

double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

double bilinear(double x) { return std::fabs(x) < 1.0 ? 1.0 - std::fabs(x) : 0.0; }

double hamming(double x) {
  x = std::fabs(x);
  if (x == 0.0) return 1.0;
  if (x >= 1.0) return 0.0;
  x *= kPi;
  return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));  // Pillow's numbers are fp32, too
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * kPi) / (x * kPi); }

double lanczos(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Kernel {
  double (*value)(double);
  double support;  // it is 0 farther away
};

Kernel kernel_of(Filter filter) {
  switch (filter) {
    case Filter::kLanczos:
      return {lanczos, 3.0};
    case Filter::kBilinear:
      return {bilinear, 1.0};
    case Filter::kBox:
      return {box, 0.5};
    case Filter::kHamming:
      return {hamming, 1.0};
    default:
      return {bicubic, 2.0};
  }
}

// What a new pixel is made of: old pixels from `first`, and the weights of each.
struct Sources {
  int64_t first;
  std::vector<int32_t> weights;
};

// The new pixels `begin` to `begin + count` of an axis that had `before` and gets `after` pixels.
std::vector<Sources> sources_of(int64_t before, int64_t after, const Kernel& kernel, int64_t begin, int64_t count) {
  const double scale = static_cast<double>(static_cast<float>(before)) / static_cast<double>(after);
  const double spread = std::max(scale, 1.0);  // smaller images get smoother ones first
  const double support = kernel.support * spread, narrowing = 1.0 / spread;
  std::vector<Sources> all;
  all.reserve(static_cast<size_t>(count));
  std::vector<double> exact;
  for (int64_t to = begin; to < begin + count; ++to) {
    const double centre = (static_cast<double>(to) + 0.5) * scale;
    // As in Pillow, also where a sum is negative. NOLINTBEGIN(bugprone-incorrect-roundings)
    const int64_t first = std::max(static_cast<int64_t>(centre - support + 0.5), int64_t{0});
    const int64_t end = std::min(static_cast<int64_t>(centre + support + 0.5), before);
    // NOLINTEND(bugprone-incorrect-roundings)
    exact.clear();
    double sum = 0.0;
    for (int64_t x = 0; x < end - first; ++x) {
      exact.push_back(kernel.value((static_cast<double>(x + first) - centre + 0.5) * narrowing));
      sum += exact.back();
    }
    Sources sources{first, {}};
    for (double weight : exact) {
      if (sum != 0.0) weight /= sum;
      sources.weights.push_back(static_cast<int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << kPrecisionBits)));
    }
    all.push_back(std::move(sources));
  }
  return all;
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kPrecisionBits, 0, 255)); }

// A pixel of weighted ones that lie `stride` bytes apart.
void mix(const uint8_t* from, int64_t stride, const std::vector<int32_t>& weights, uint8_t* to) {
  int32_t red = 1 << (kPrecisionBits - 1), green = red, blue = red;
  for (const int32_t weight : weights) {
    red += from[0] * weight;
    green += from[1] * weight;
    blue += from[2] * weight;
    from += stride;
  }
  to[0] = rounded(red);
  to[1] = rounded(green);
  to[2] = rounded(blue);
}

// Pixels of a part of an image.
struct Part {
  std::vector<uint8_t> rgb;
  int64_t width;

  explicit Part(int64_t part_width, int64_t height)
      : rgb(static_cast<size_t>(part_width * height * kChannels)), width(part_width) {}
  ImageView view() const { return {rgb.data(), width, static_cast<int64_t>(rgb.size()) / (width * kChannels)}; }
};

Part cut(const ImageView& image, const Window& window) {
  Part part(window.width, window.height);
  const int64_t row = window.width * kChannels;
  for (int64_t y = 0; y < window.height; ++y) {
    const uint8_t* const from = image.rgb + ((window.top + y) * image.width + window.left) * kChannels;
    std::memcpy(part.rgb.data() + y * row, from, static_cast<size_t>(row));
  }
  return part;
}

// New columns, of `count` rows from `top`.
Part along_rows(const ImageView& image, const std::vector<Sources>& columns, int64_t top, int64_t count) {
  Part part(static_cast<int64_t>(columns.size()), count);
  uint8_t* to = part.rgb.data();
  for (int64_t y = top; y < top + count; ++y) {
    const uint8_t* const row = image.rgb + y * image.width * kChannels;
    for (const Sources& source : columns) {
      mix(row + source.first * kChannels, kChannels, source.weights, to);
      to += kChannels;
    }
  }
  return part;
}

// New rows, of `count` columns from `left`.
Part along_columns(const ImageView& image, const std::vector<Sources>& rows, int64_t left, int64_t count) {
  Part part(count, static_cast<int64_t>(rows.size()));
  uint8_t* to = part.rgb.data();
  const int64_t stride = image.width * kChannels;
  for (const Sources& source : rows) {
    const uint8_t* const top = image.rgb + source.first * stride;
    for (int64_t x = left; x < left + count; ++x) {
      mix(top + x * kChannels, stride, source.weights, to);
      to += kChannels;
    }
  }
  return part;
}

// The old pixels that new ones need; makes `sources` count from the first of them.
struct Span {
  int64_t first, count;
};
Span needed_(std::vector<Sources>* sources) {
  int64_t first = INT64_MAX, end = 0;
  for (const Sources& source : *sources) {
    first = std::min(first, source.first);
    end = std::max(end, source.first + static_cast<int64_t>(source.weights.size()));
  }
  for (Sources& source : *sources) source.first -= first;
  return {first, end - first};
}

// The old pixel at each of the new ones, -1 for none; with Pillow's own sums, which are off by a little.
std::vector<int64_t> nearest(int64_t before, int64_t after, int64_t begin, int64_t count) {
  const double step = static_cast<double>(static_cast<float>(before)) / static_cast<double>(after);
  std::vector<int64_t> places;
  double at = step * 0.5;
  for (int64_t to = 0; to < begin + count; ++to, at += step) {
    const auto place = static_cast<int64_t>(at);
    if (to >= begin) places.push_back(place < before ? place : -1);
  }
  return places;
}

Part take_nearest(const ImageView& image, const Size& size, const Window& window) {
  const auto columns = nearest(image.width, size.width, window.left, window.width);
  const auto rows = nearest(image.height, size.height, window.top, window.height);
  Part part(window.width, window.height);
  uint8_t* to = part.rgb.data();
  for (const int64_t y : rows) {
    for (const int64_t x : columns) {
      if (x >= 0 && y >= 0) std::memcpy(to, image.rgb + (y * image.width + x) * kChannels, kChannels);
      to += kChannels;
    }
  }
  return part;
}

Part take_smooth(const ImageView& image, const Size& size, const Kernel& kernel, const Window& window) {
  auto columns = sources_of(image.width, size.width, kernel, window.left, window.width);
  auto rows = sources_of(image.height, size.height, kernel, window.top, window.height);
  if (size.width == image.width) return along_columns(image, rows, window.left, window.width);
  if (size.height == image.height) return along_rows(image, columns, window.top, window.height);
  // Since version 13, Pillow begins with the pass that leaves fewer pixels to the other one.
  const int64_t fewer_rows = image.height - size.height, fewer_columns = image.width - size.width;
  if (fewer_rows > 0 && fewer_rows > 2 * fewer_columns) {
    const Span span = needed_(&columns);
    return along_rows(along_columns(image, rows, span.first, span.count).view(), columns, 0, window.height);
  }
  const Span span = needed_(&rows);
  return along_columns(along_rows(image, columns, span.first, span.count).view(), rows, 0, window.width);
}

}  // namespace

std::vector<uint8_t> resample(const ImageView& image, const Size& size, Filter filter, const Window& window) {
  if (size.width == image.width && size.height == image.height) return cut(image, window).rgb;
  if (filter == Filter::kNearest) return take_nearest(image, size, window).rgb;
  return take_smooth(image, size, kernel_of(filter), window).rgb;
}

}  // namespace awq2trt
