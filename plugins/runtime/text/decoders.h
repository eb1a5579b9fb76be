// From tokens back to text, token by token. In: a decoder of tokenizer.json; out: a chain of steps, each of which takes
// tokens and passes tokens on as soon as it is certain of them. The same chain decodes complete answers, so streamed
// text cannot differ from them.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace awq2trt {

// A step that decodes one answer. Tokens may come in parts: a part that is not the last of its token has more to
// follow.
class DecodingStep {
 public:
  virtual ~DecodingStep() = default;
  virtual void take(std::string_view part, bool is_last) = 0;
  virtual void finish() = 0;  // no token follows

  void set_next(DecodingStep* next) { next_ = next; }

 protected:
  void hand_on(std::string_view part, bool is_last) { next_->take(part, is_last); }
  void finish_next() { next_->finish(); }

 private:
  DecodingStep* next_ = nullptr;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual std::unique_ptr<DecodingStep> begin() const = 0;
};

using Decoders = std::vector<std::unique_ptr<Decoder>>;

struct DecoderPlan {
  Decoders chain;
  bool takes_bytes = false;  // the first step takes the bytes that a token of a raw vocabulary stands for
};

// Throws Error on anything unknown. A null definition joins tokens with spaces. `raw_vocabulary`: see vocabulary.h.
DecoderPlan make_decoders(const nlohmann::json& definition, const std::string& where, bool raw_vocabulary);

}  // namespace awq2trt
