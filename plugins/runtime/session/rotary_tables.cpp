// See rotary_tables.h.
#include "session/rotary_tables.h"

#include <algorithm>
#include <array>
#include <cmath>

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

}  // namespace

RotaryTables::RotaryTables(const RopeRecord& rope, int64_t capacity)
    : followed_(rope.followed), capacity_(static_cast<size_t>(capacity)) {
  RotaryRows rows;
  rows.cos.reserve(capacity_ * followed_.size());
  rows.sin.reserve(capacity_ * followed_.size());
  for (size_t position = 0; position < capacity_; ++position) {
    for (const double frequency : rope.inv_freq) {
      const double angle = static_cast<double>(position) * frequency;
      rows.cos.push_back(static_cast<float>(rope.factor * std::cos(angle)));
      rows.sin.push_back(static_cast<float>(rope.factor * std::sin(angle)));
    }
  }
  text_ = std::make_shared<const RotaryRows>(std::move(rows));
}

std::shared_ptr<const RotaryRows> RotaryTables::of(const Prompt& prompt) const {
  if (prompt.images.empty()) return text_;
  auto rows = std::make_shared<RotaryRows>(*text_);
  const size_t pairs = followed_.size();
  const auto place = [&](size_t slot, const Position& position) {
    for (size_t pair = 0; pair < pairs; ++pair) {
      // Behind a part of an image, of which a rewind took the rest, a text may go on beyond the table.
      const size_t from = std::min(position[followed_[pair]], capacity_ - 1) * pairs + pair;
      rows->cos[slot * pairs + pair] = text_->cos[from];
      rows->sin[slot * pairs + pair] = text_->sin[from];
    }
  };
  size_t next = follow(prompt, place);
  for (size_t slot = prompt.size(); slot < capacity_; ++slot, ++next) {
    place(slot, {next, next, next});
  }
  return rows;
}

}  // namespace detail
}  // namespace awq2trt
