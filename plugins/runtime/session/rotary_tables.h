// The tables of cosines and sines for a decoder in which positions of images have three numbers. In: a prompt with
// images. Out: a row for the token in every slot of the cache; slots behind the prompt are those of a text that goes
// on.
//
// The same steps as awq2trt/runtime/rotary_tables.py and awq2trt/models/vision/mixed_positions.py, which explains them.
#pragma once

#include <cstdint>
#include <vector>

#include "artifact/manifest.h"
#include "session/tables.h"

namespace awq2trt {
namespace detail {

class RotaryTables : public DecoderTables {
 public:
  RotaryTables(const RopeRecord& rope, int64_t capacity);

 private:
  void place(const Prompt& prompt, Tables* tables) const override;

  std::vector<size_t> followed_;
  size_t capacity_;
};

}  // namespace detail
}  // namespace awq2trt
