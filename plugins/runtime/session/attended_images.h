// The images of a conversation, for a decoder that attends to them. In: a prompt with images, of which the vision graph
// made keys and values. Out: all images, and for every slot the number of the one that its token attends to: the last
// one whose token is not after it, from 1; 0 for none.
//
// The same as awq2trt/runtime/attended_images.py.
#pragma once

#include <cstdint>

#include "session/tables.h"

namespace awq2trt {
namespace detail {

class AttendedImages : public DecoderTables {
 public:
  // `images`: [most images of a conversation, pieces of each, channels of a piece].
  AttendedImages(const TableContract& images, int64_t capacity);

  void require_images(size_t images) const override;

 private:
  void place(const Prompt& prompt, Tables* tables) const override;

  size_t most_;
};

}  // namespace detail
}  // namespace awq2trt
