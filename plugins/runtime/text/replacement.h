// Replaces a pattern by a text, as a normalizer and as a decoder. A pattern of tokenizer.json is {"String": "..."},
// searched for literally, or {"Regex": "..."}.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "text/regex.h"

namespace awq2trt {

class Replacement {
 public:
  Replacement(const nlohmann::json& pattern, std::string content, const std::string& where);

  void apply_(std::string* text) const;

 private:
  std::string literal_, content_;
  std::optional<Regex> regex_;
};

// The text or the expression of a pattern; throws Error on anything else.
struct Pattern {
  std::string text;
  bool is_regex;
};
Pattern read_pattern(const nlohmann::json& pattern, const std::string& where);

}  // namespace awq2trt
