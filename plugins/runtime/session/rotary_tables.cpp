// See rotary_tables.h.
#include "session/rotary_tables.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace awq2trt {
namespace detail {
namespace {

using Position = std::array<size_t, 3>;  // frame, row and column

// Calls `place` with the position of each token, then returns that of the text behind them.
template <typename Place>
size_t follow(const Prompt& prompt, const Place& place) {
  size_t slot = 0, next = 0;
  const auto go_on = [&](size_t end) {
    for (; slot < end; ++slot, ++next) place(slot, Position{next, next, next});
  };
  for (const PlacedImage& image : prompt.images) {
    go_on(image.first);
    const auto rows = static_cast<size_t>(image.pieces->grid.rows);
    const auto columns = static_cast<size_t>(image.pieces->grid.columns);
    for (size_t piece = 0; piece < image.count; ++piece, ++slot) {
      place(slot, Position{next, next + piece / columns, next + piece % columns});
    }
    next += std::max(rows, columns);
  }
  go_on(prompt.size());
  return next;
}

Tables of_text(const RopeRecord& rope, int64_t capacity) {
  std::vector<float> cosines, sines;
  cosines.reserve(static_cast<size_t>(capacity) * rope.inv_freq.size());
  sines.reserve(cosines.capacity());
  for (int64_t position = 0; position < capacity; ++position) {
    for (const double frequency : rope.inv_freq) {
      const double angle = static_cast<double>(position) * frequency;
      cosines.push_back(static_cast<float>(rope.factor * std::cos(angle)));
      sines.push_back(static_cast<float>(rope.factor * std::sin(angle)));
    }
  }
  return {std::move(cosines), std::move(sines)};
}

}  // namespace

RotaryTables::RotaryTables(const RopeRecord& rope, int64_t capacity)
    : DecoderTables(of_text(rope, capacity)), followed_(rope.followed), capacity_(static_cast<size_t>(capacity)) {}

void RotaryTables::place(const Prompt& prompt, Tables* tables) const {
  const size_t pairs = followed_.size();
  const auto place = [&](size_t slot, const Position& position) {
    for (size_t pair = 0; pair < pairs; ++pair) {
      // Behind a part of an image, of which a rewind took the rest, a text may go on beyond the table.
      const size_t from = std::min(position[followed_[pair]], capacity_ - 1) * pairs + pair;
      for (size_t table = 0; table < tables->size(); ++table) {
        (*tables)[table][slot * pairs + pair] = (*text())[table][from];
      }
    }
  };
  size_t next = follow(prompt, place);
  for (size_t slot = prompt.size(); slot < capacity_; ++slot, ++next) {
    place(slot, {next, next, next});
  }
}

}  // namespace detail
}  // namespace awq2trt
