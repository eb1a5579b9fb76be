// See stop_strings.h.
#include "generation/stop_strings.h"

#include <algorithm>

#include "awq2trt/awq2trt.hpp"
#include "text/unicode.h"

namespace awq2trt {

StopStrings::StopStrings(const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    if (text.empty()) {
      throw Error(ErrorCode::kBadArgument, "an empty stop string would end every answer", "GenerateOptions::stop", "");
    }
    require_utf8(text, "GenerateOptions::stop");
    Pattern pattern{text, std::vector<size_t>(text.size() + 1, 0)};
    for (size_t i = 1; i < text.size(); ++i) {
      pattern.push(text[i]);
      pattern.shorter[i + 1] = pattern.matched;
    }
    pattern.matched = 0;
    patterns_.push_back(std::move(pattern));
  }
}

void StopStrings::Pattern::push(char byte) {
  while (matched > 0 && text[matched] != byte) matched = shorter[matched];
  if (text[matched] == byte) ++matched;
}

std::string StopStrings::push(std::string_view piece) {
  if (found_) return "";
  for (size_t i = 0; i < piece.size(); ++i) {
    size_t length = 0;
    for (Pattern& pattern : patterns_) {
      pattern.push(piece[i]);
      if (pattern.matched == pattern.text.size()) length = std::max(length, pattern.matched);
    }
    if (length == 0) continue;
    found_ = true;
    held_.append(piece.substr(0, i + 1));
    held_.resize(held_.size() - length);
    return std::move(held_);
  }
  held_.append(piece);
  size_t uncertain = 0;
  for (const Pattern& pattern : patterns_) uncertain = std::max(uncertain, pattern.matched);
  std::string certain = held_.substr(0, held_.size() - uncertain);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopStrings::finish() {
  std::string rest;
  rest.swap(held_);
  return rest;
}

}  // namespace awq2trt
