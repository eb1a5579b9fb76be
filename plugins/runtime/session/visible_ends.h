// What tokens see of what is behind them, for a decoder in which tokens of an image see each other. In: a prompt with
// images. Out: for every slot the last one that its token sees: its own, or the last one of the row of image tokens
// that it stands in.
//
// The same as awq2trt/runtime/visible_ends.py and awq2trt/models/vision/block_ends.py.
#pragma once

#include <cstdint>

#include "session/tables.h"

namespace awq2trt {
namespace detail {

class VisibleEnds : public DecoderTables {
 public:
  explicit VisibleEnds(int64_t capacity);

  bool whole_rows() const override { return true; }

 private:
  void place(const Prompt& prompt, Tables* tables) const override;
};

}  // namespace detail
}  // namespace awq2trt
