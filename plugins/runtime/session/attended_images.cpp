// See attended_images.h.
#include "session/attended_images.h"

#include <algorithm>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace detail {

AttendedImages::AttendedImages(const TableContract& images, int64_t capacity)
    : DecoderTables({std::vector<float>(images.count()), std::vector<float>(static_cast<size_t>(capacity))}),
      most_(static_cast<size_t>(images.shape[0])) {}

void AttendedImages::require_images(size_t images) const {
  if (images <= most_) return;
  throw Error(ErrorCode::kTooLong,
              "a session with this model may have " + std::to_string(most_) + " images, got " + std::to_string(images),
              "Session",
              "show fewer images, rewind(), or build the model again with --max-images " + std::to_string(images) +
                  " or more.");
}

void AttendedImages::place(const Prompt& prompt, Tables* tables) const {
  auto to = tables->front().begin();
  std::vector<float>& image_of_slot = tables->back();
  float number = 0;
  for (const PlacedImage& image : prompt.images) {
    to = std::copy(image.pieces->rows.begin(), image.pieces->rows.end(), to);
    std::fill(image_of_slot.begin() + static_cast<std::ptrdiff_t>(image.first), image_of_slot.end(), ++number);
  }
}

}  // namespace detail
}  // namespace awq2trt
