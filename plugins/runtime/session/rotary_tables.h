// The tables of cosines and sines for a decoder in which positions of images have three numbers. In: a prompt with
// images. Out: a row for the token in every slot of the cache; slots behind the prompt are those of a text that goes
// on.
//
// The same steps as awq2trt/runtime/rotary_tables.py and awq2trt/models/vision/mixed_positions.py, which explains them.
#pragma once

#include <cstdint>
#include <memory>

#include "artifact/manifest.h"
#include "backend/backend.h"
#include "session/prompt.h"

namespace awq2trt {
namespace detail {

class RotaryTables {
 public:
  RotaryTables(const RopeRecord& rope, int64_t capacity);

  // Those of a text, which all sessions share.
  const std::shared_ptr<const RotaryRows>& text() const { return text_; }
  // `prompt` has at most `capacity` tokens.
  std::shared_ptr<const RotaryRows> of(const Prompt& prompt) const;

 private:
  std::vector<size_t> followed_;
  size_t capacity_;
  std::shared_ptr<const RotaryRows> text_;
};

}  // namespace detail
}  // namespace awq2trt
