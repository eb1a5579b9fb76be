// See visible_ends.h.
#include "session/visible_ends.h"

#include <numeric>

namespace awq2trt {
namespace detail {
namespace {

Tables of_text(int64_t capacity) {
  std::vector<float> ends(static_cast<size_t>(capacity));
  std::iota(ends.begin(), ends.end(), 0.0f);
  return {ends};
}

}  // namespace

VisibleEnds::VisibleEnds(int64_t capacity) : DecoderTables(of_text(capacity)) {}

void VisibleEnds::place(const Prompt& prompt, Tables* tables) const {
  // From the last image on: one before which another ends shares the end of that one.
  size_t row_end = 0, next = 0;
  for (auto image = prompt.images.rbegin(); image != prompt.images.rend(); ++image) {
    const size_t end = image->first + image->count;
    if (end != next) row_end = end;
    next = image->first;
    for (size_t slot = image->first; slot < end; ++slot) tables->front()[slot] = static_cast<float>(row_end - 1);
  }
}

}  // namespace detail
}  // namespace awq2trt
