// Decodes text while tokens arrive. In: ids, one after another; out: complete characters as soon as they are certain.
// Joined, the pieces are the text that Tokenizer::decode gives for all ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/decoders.h"

namespace awq2trt {

class Tokenizer;

class StreamDecoder {
 public:
  // The tokenizer outlives it. `skip_special`: special tokens have no text.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special);
  ~StreamDecoder();

  std::string push(int32_t id);  // often empty: a character may lack bytes. An unknown id has no text.
  std::string finish();          // what was held back; afterwards the stream can be used again

 private:
  class Sink;
  void restart();

  const Tokenizer& tokenizer_;
  bool skip_special_;
  std::unique_ptr<Sink> sink_;
  std::vector<std::unique_ptr<DecodingStep>> steps_;
};

}  // namespace awq2trt
