// See levels.h.
#include "images/levels.h"

#include <cstddef>

namespace awq2trt {

void append_planes(const ImageView& image, const Window& window, const Levels& levels, std::vector<float>* planes) {
  for (int64_t channel = 0; channel < kChannels; ++channel) {
    const auto& values = levels[static_cast<size_t>(channel)];
    for (int64_t y = window.top; y < window.top + window.height; ++y) {
      const uint8_t* const row = image.rgb + (y * image.width + window.left) * kChannels + channel;
      for (int64_t x = 0; x < window.width; ++x) planes->push_back(values[row[x * kChannels]]);
    }
  }
}

}  // namespace awq2trt
