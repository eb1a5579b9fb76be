// SentencePiece's table of replacements, compiled into a trie: the normalizer Precompiled of T5, ALBERT and XLM-R.
// In: the table, base64; out: an object that looks up prefixes.
// Source: https://github.com/google/sentencepiece (normalizer.cc, third_party/darts_clone), and how Hugging Face's
// spm_precompiled reads it: the shortest prefix in the table stands for a whole cluster of up to 5 bytes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace awq2trt {

class PrecompiledTable {
 public:
  PrecompiledTable(const std::string& base64, const std::string& where);

  void apply_(std::string* text) const;

 private:
  // The replacement of the shortest prefix of `text` in the table, or nullptr.
  const char* find(std::string_view text) const;

  std::vector<uint32_t> units_;  // a double array
  std::string replacements_;     // each ends with a zero byte
};

}  // namespace awq2trt
