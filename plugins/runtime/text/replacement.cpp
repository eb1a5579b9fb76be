// See replacement.h.
#include "text/replacement.h"

#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"
#include "text/json_fields.h"

namespace awq2trt {

Pattern read_pattern(const nlohmann::json& pattern, const std::string& where) {
  Fields fields(pattern, where);
  Pattern result;
  result.is_regex = fields.find("Regex") != nullptr;
  result.text = fields.text(result.is_regex ? "Regex" : "String");
  fields.finish();
  return result;
}

Replacement::Replacement(const nlohmann::json& pattern, std::string content, const std::string& where)
    : content_(std::move(content)) {
  Pattern read = read_pattern(pattern, where);
  if (read.is_regex) {
    regex_.emplace(read.text, where);
  } else {
    literal_ = std::move(read.text);
    if (literal_.empty()) throw Error(ErrorCode::kMalformed, "an empty pattern", where, "");
  }
}

void Replacement::apply_(std::string* text) const {
  std::string result;
  size_t copied = 0;
  const auto replace = [&](size_t begin, size_t end) {
    result.append(*text, copied, begin - copied);
    result += content_;
    copied = end;
  };
  if (regex_) {
    Regex::Matches matches(*regex_, *text);
    for (Span match; matches.next(&match);) replace(match.begin, match.end);
  } else {
    size_t found = text->find(literal_);
    if (found == std::string::npos) return;
    result.reserve(text->size() + text->size() / 2);
    for (; found != std::string::npos; found = text->find(literal_, found + literal_.size())) {
      replace(found, found + literal_.size());
    }
  }
  result.append(*text, copied, std::string::npos);
  *text = std::move(result);
}

}  // namespace awq2trt
