// How a model that sees is shown images: prepared, and at their places among the tokens of a prompt. In: 8-bit RGB;
// messages and texts with kMarker where an image stands. Out: what the vision graph reads; prompts.
//
// The same steps as awq2trt/runtime/sight.py and chat.py.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"
#include "backend/contract.h"
#include "images/processor.h"
#include "session/prompt.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace awq2trt {
namespace detail {

constexpr char kMarker[] = "<image>";  // in place of an image, as in awq2trt/images/pairs.py
// What Gemma 3's chat template writes in place of one, as in awq2trt/models/vision/pooled.py.
constexpr char kBeforeImage[] = "<start_of_image>";

constexpr int64_t kAnyCount = -1;

class Sight {
 public:
  // `chat_template`: the model's, or null.
  Sight(const VisionRecord& record, const VisionContract& contract, const ImageProcessor& processor,
        const Tokenizer& tokenizer, const ChatTemplate* chat_template);

  // Image tokens of every image; kAnyCount if they depend on its size.
  int64_t tokens_per_image() const { return record_.tokens_per_image == 0 ? kAnyCount : record_.tokens_per_image; }
  const VisionContract& contract() const { return contract_; }
  // Image tokens of an image of this size.
  int64_t image_tokens(const Size& image) const;
  // Tokens of what is written around its pieces.
  size_t tokens_around(const Size& image, const Tokenizer& tokenizer) const;
  // Whether the decoder attends to images: their tokens have rows of their own.
  bool attended() const { return record_.kind == ImageKind::kAttended; }
  PreparedImage prepare(const ImageView& image) const;

  // Messages with a marker for each of so many images: before the user's last text, where there are none. Throws Error,
  // kBadArgument, if there are more or fewer markers than images.
  std::vector<Message> with_markers(std::vector<Message> messages, size_t images) const;
  // A text of the model itself, in which nothing stands for an image.
  std::string without_markers(std::string text) const;
  // A message as the chat template takes it.
  nlohmann::ordered_json in_template(const Message& message) const;

  // The prompt that a text makes, with an image for each of its markers. Throws Error, kBadArgument, if the numbers
  // differ.
  Prompt place(const std::vector<TextPart>& text, bool add_special_tokens, const Tokenizer& tokenizer,
               const std::vector<Pieces>& images) const;
  // The same of tokens, which have as many image tokens as the images have pieces: side by side, or in each tile.
  Prompt place(const std::vector<int32_t>& tokens, const std::vector<Pieces>& images) const;

 private:
  // Texts in place of an image.
  std::vector<std::string_view> places() const;
  // What is written before the pieces of each tile and behind those of the last.
  std::vector<std::string> texts(const Grid& grid) const;
  std::vector<int32_t> encode(const std::vector<TextPart>& text, bool add_special_tokens, const Tokenizer& tokenizer,
                              const std::vector<Pieces>& images) const;

  VisionRecord record_;
  VisionContract contract_;
  ImageProcessor processor_;
  bool takes_parts_;  // whether the chat template takes a message as a list of images and texts
};

// How many markers a text has.
size_t count_markers(std::string_view text);

}  // namespace detail
}  // namespace awq2trt
