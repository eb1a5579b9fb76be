// What becomes of the numbers of pixels, and images as planes of such numbers.
#pragma once

#include <array>
#include <vector>

#include "images/resample.h"

namespace awq2trt {

using Levels = std::array<std::array<float, 256>, kChannels>;  // prepared values of every channel's 256

// Appends a part of an image: [3, height, width] of the window.
void append_planes(const ImageView& image, const Window& window, const Levels& levels, std::vector<float>* planes);

}  // namespace awq2trt
