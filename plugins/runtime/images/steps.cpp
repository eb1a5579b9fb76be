// See steps.h.
#include "images/steps.h"

#include <algorithm>

namespace awq2trt {

Size Steps::resized(const Size& image) const {
  if (resizing.size) return *resizing.size;
  if (!resizing.shortest_edge) return image;
  const int64_t edge = *resizing.shortest_edge;
  const int64_t shorter = std::min(image.width, image.height), longer = std::max(image.width, image.height);
  const auto other = static_cast<int64_t>(static_cast<double>(edge * longer) / static_cast<double>(shorter));
  return image.width <= image.height ? Size{edge, other} : Size{other, edge};
}

Pixels Steps::prepare(const ImageView& image) const {
  const Size whole = resized(image.size()), size = made(image.size());
  // A side that is too short gets black margins, of which the one before the image is the larger.
  const auto first = [](int64_t length, int64_t wanted) { return std::max<int64_t>(length - wanted, 0) / 2; };
  const auto margin = [](int64_t length, int64_t wanted) { return (std::max<int64_t>(wanted - length, 0) + 1) / 2; };
  const Window window{first(whole.width, size.width), first(whole.height, size.height),
                      std::min(whole.width, size.width), std::min(whole.height, size.height)};
  const int64_t left = margin(whole.width, size.width), top = margin(whole.height, size.height);
  const std::vector<uint8_t> pixels = resample(image, whole, filter, window);
  Pixels prepared{{}, {1, kChannels, size.height, size.width}};
  prepared.values.reserve(static_cast<size_t>(kChannels * size.width * size.height));
  for (int64_t channel = 0; channel < kChannels; ++channel) {
    const auto& values = levels[static_cast<size_t>(channel)];
    prepared.values.resize(prepared.values.size() + static_cast<size_t>(size.width * size.height), values[0]);
    float* const plane = prepared.values.data() + channel * size.width * size.height;
    for (int64_t y = 0; y < window.height; ++y) {
      const uint8_t* from = pixels.data() + y * window.width * kChannels + channel;
      float* const to = plane + (top + y) * size.width + left;
      for (int64_t x = 0; x < window.width; ++x) to[x] = values[from[x * kChannels]];
    }
  }
  return prepared;
}

Steps read_steps(const KeyReader& reader) {
  Steps steps{};
  if (reader.flag("do_resize")) steps.resizing = reader.resizing();
  steps.filter = reader.filter();
  if (reader.flag("do_center_crop")) steps.crop = reader.sides("crop_size");
  steps.levels = reader.levels();
  return steps;
}

Steps read_gemma_steps(const KeyReader& reader) {
  constexpr ChannelNumbers kMiddle{0.5, 0.5, 0.5};  // SigLIP's mean and deviation: levels are those from -1 to 1
  const auto* const cuts = reader.find("do_pan_and_scan");
  if (cuts != nullptr && *cuts != false) reader.refuse("do_pan_and_scan", "false, as published models have it");
  reader.refuse_padding();
  Steps steps{};
  if (reader.flag("do_resize")) steps.resizing.size = reader.sides("size");
  steps.filter = reader.filter(Filter::kBilinear);
  steps.levels = reader.levels(kMiddle, kMiddle);
  return steps;
}

}  // namespace awq2trt
