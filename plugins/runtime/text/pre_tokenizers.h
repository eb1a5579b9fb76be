// How normalized text is split into the words that the model sees one by one. In: a pre_tokenizer of tokenizer.json;
// out: an object that splits, and may change the text on the way (ByteLevel, Metaspace).
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace awq2trt {

// A text and the words in it, in order. Not all of the text need be in a word.
class Words {
 public:
  // `at_start`: the text is at the beginning of the encoded text. The caller keeps `text` alive.
  Words(std::string_view text, bool at_start);

  std::string_view text() const { return text_; }
  const std::vector<Span>& spans() const { return spans_; }
  std::string_view operator[](size_t i) const { return text_.substr(spans_[i].begin, spans_[i].size()); }
  // Whether the first word is at the beginning of the encoded text.
  bool at_start() const { return at_start_; }

  void set_spans(std::vector<Span> spans, bool at_start);
  void set_text(std::string text, std::vector<Span> spans);

 private:
  std::string storage_;
  std::string_view text_;
  std::vector<Span> spans_;
  bool at_start_;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void apply_(Words* words) const = 0;
};

struct PreTokenizerPlan {
  std::unique_ptr<PreTokenizer> steps;  // nullptr: the text is one word
  bool raw_bytes = false;               // the last step was ByteLevel, whose alphabet is left out: the model gets bytes
};

// Throws Error on anything unknown. Where `definition` is null, there are no steps.
PreTokenizerPlan make_pre_tokenizer(const nlohmann::json& definition, const std::string& where);

}  // namespace awq2trt
