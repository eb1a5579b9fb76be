// A model's tokenizer. In: tokenizer.json, as Hugging Face's tokenizers write it, and text; out: the ids that they
// give, and text again. A file with something that this library does not know is refused when it is read.
//
// Where it differs from Hugging Face's tokenizers (tests/plugins/runtime/test_tokenizer.py checks the rest):
// - Untrusted text never becomes a special token. There, a Unigram model finds special tokens among its pieces even so.
// - Punctuation, Digits, StripAccents and the normal forms follow utf8proc's Unicode. Hugging Face takes its
//   punctuation from Unicode 8 and its marks and normal forms from Unicode 9, which lack characters added since.
// - Text that is not UTF-8 is an error.
//
// One object serves any number of threads at once.
#pragma once

#include <cstdint>
#include <istream>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/decoders.h"
#include "text/model.h"
#include "text/normalizers.h"
#include "text/post_processor.h"
#include "text/pre_tokenizers.h"
#include "text/vocabulary.h"

namespace awq2trt {

struct EncodeOptions {
  // Whether text may mean a special token, e.g. "<|im_end|>". What users write should not.
  bool allow_special = false;
  // Whether to add what the tokenizer puts around a text, e.g. the token that begins a sequence.
  bool add_special_tokens = false;
};

// Text of one origin: from the program or its chat template, where special tokens count, or from a user, where they do
// not.
struct TextPart {
  std::string_view text;
  bool trusted;
};

class Tokenizer {
 public:
  // Throws Error.
  static std::unique_ptr<Tokenizer> from_directory(const std::string& directory);
  static std::unique_ptr<Tokenizer> from_stream(std::istream& in, const std::string& where);

  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;
  // The parts as one text: words may reach from one into the next, special tokens may not.
  std::vector<int32_t> encode(const std::vector<TextPart>& parts, bool add_special_tokens) const;
  std::string decode(const std::vector<int32_t>& ids, bool skip_special = true) const;

  int32_t size() const { return vocabulary_.size(); }                                  // highest id + 1
  int32_t find(std::string_view token) const { return vocabulary_.find_text(token); }  // id, or -1
  bool is_special(int32_t id) const { return added_.is_special(id); }
  const std::vector<AddedToken>& added_tokens() const { return added_.tokens(); }
  const Vocabulary& vocabulary() const { return vocabulary_; }
  const DecoderPlan& decoders() const { return decoders_; }

 private:
  Tokenizer() = default;
  void read(std::istream& in, const std::string& where);
  void read_vocabulary(const Definition& definition, bool raw, const std::string& where);
  void encode_words(std::string_view text, bool at_start, Scratch* scratch, std::vector<int32_t>* ids) const;

  Vocabulary vocabulary_;
  std::unique_ptr<Normalizer> normalizer_;
  AddedTokens added_;
  PreTokenizerPlan pre_tokenizer_;
  std::unique_ptr<SubwordModel> model_;
  SpecialFrame frame_;
  DecoderPlan decoders_;

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> idle_;  // of threads that are done; guarded by `mutex_`
};

}  // namespace awq2trt
