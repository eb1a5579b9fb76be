// Translation of patterns and PCRE2; see regex.h.
#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "awq2trt/awq2trt.hpp"
#include "text/unicode.h"

namespace awq2trt {
namespace {

// Characters with the property White_Space. PCRE2's own \s also has U+180E.
constexpr char kSpaces[] =
    "\\x{9}-\\x{D} \\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
    "\\x{205F}\\x{3000}";

// Work on one match, in PCRE2's units: bounds patterns that backtrack exponentially. Patterns in use stay below 10,000
// unless a word has more characters than that.
constexpr uint32_t kMatchLimit = 20'000'000;

// Bytes of a pattern. The longest in use has about 600.
constexpr size_t kLongestPattern = 65'536;

[[noreturn]] void refuse(const std::string& what, const std::string& where) {
  throw Error(ErrorCode::kUnsupported, what, where, "use a model whose tokenizer.json does without it.");
}

std::string translate(std::string_view pattern, const std::string& where) {
  std::string result;
  bool in_set = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        result += in_set ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
      } else if (escaped == 'S' && !in_set) {
        result += "[^" + std::string(kSpaces) + "]";
      } else if (escaped == 'h' || escaped == 'H' || escaped == 'K' || escaped == 'Q' || escaped == 'E' ||
                 escaped == 'y' || escaped == 'Y' || escaped == 'C') {
        refuse(std::string("the escape \\") + escaped +
                   " in the regular expression means different things to "
                   "different engines",
               where);
      } else {
        result += c;
        result += escaped;
      }
      continue;
    }
    if (in_set) {
      if (c == '[' && !(i + 1 < pattern.size() && pattern[i + 1] == ':')) {
        refuse("a set within a set in the regular expression", where);
      }
      if (c == '[') {  // [:alpha:]
        const size_t end = pattern.find(":]", i);
        if (end == std::string_view::npos) refuse("a set within a set in the regular expression", where);
        result += pattern.substr(i, end + 2 - i);
        i = end + 1;
        continue;
      }
      if (c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') {
        refuse("an intersection of sets (&&) in the regular expression", where);
      }
      in_set = c != ']';
    } else if (c == '[') {
      in_set = true;
      result += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') result += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') {
        refuse("a set that begins with ] in the regular expression", where);
      }
      continue;
    } else if (c == '(' && i + 1 < pattern.size() && pattern[i + 1] == '?') {
      const size_t end = pattern.find_first_of(":)", i);
      const size_t flag = pattern.find_first_of("mxsUJ", i);
      if (i + 2 < pattern.size() && (pattern[i + 2] == '-' || (pattern[i + 2] >= 'a' && pattern[i + 2] <= 'z')) &&
          flag < end) {
        refuse("a flag other than i in the regular expression", where);
      }
    }
    result += c;
  }
  return result;
}

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

pcre2_match_context* match_context() {
  static pcre2_match_context* const context = [] {
    pcre2_match_context* made = pcre2_match_context_create(nullptr);
    if (made != nullptr) pcre2_set_match_limit(made, kMatchLimit);
    return made;
  }();
  return context;
}

}  // namespace

Regex::Regex(std::string_view pattern, const std::string& where) : where_(where) {
  if (pattern.size() > kLongestPattern) {
    throw Error(ErrorCode::kLimit,
                "the regular expression has " + std::to_string(pattern.size()) + " bytes, at most " +
                    std::to_string(kLongestPattern) + " are expected",
                where, "");
  }
  const std::string translated = translate(pattern, where);
  int code = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &offset, nullptr);
  if (compiled == nullptr) {
    throw Error(
        ErrorCode::kMalformed,
        "not a regular expression: " + message_of(code) + " at byte " + std::to_string(offset) + " of " + translated,
        where, "");
  }
  code_ = std::shared_ptr<void>(compiled, FreeCode());
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // without the JIT it is slower and means the same
}

Regex Regex::of_literal(std::string_view text, const std::string& where) {
  std::string pattern;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80 && is_punctuation(c)) pattern += '\\';
    pattern += c;
  }
  return Regex(pattern, where);
}

void Regex::FreeCode::operator()(void* code) const { pcre2_code_free(static_cast<pcre2_code*>(code)); }
void Regex::Matches::Free::operator()(void* data) const { pcre2_match_data_free(static_cast<pcre2_match_data*>(data)); }

Regex::Matches::Matches(const Regex& regex, std::string_view text)
    : regex_(regex),
      text_(text),
      data_(pcre2_match_data_create_from_pattern(static_cast<pcre2_code*>(regex.code_.get()), nullptr)) {
  if (data_ == nullptr) throw std::bad_alloc();
}

bool Regex::Matches::next(Span* match) {
  const auto* code = static_cast<const pcre2_code*>(regex_.code_.get());
  auto* data = static_cast<pcre2_match_data*>(data_.get());
  while (position_ <= text_.size()) {
    const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), position_,
                                  PCRE2_NO_UTF_CHECK, data, match_context());
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) {
      throw Error(ErrorCode::kLimit, "the regular expression gave up: " + message_of(found), regex_.where_,
                  "shorten the text, or the longest word in it.");
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data);
    *match = Span{offsets[0], offsets[1]};
    if (match->end < match->begin) refuse("a regular expression whose match ends before it begins", regex_.where_);
    if (match->begin == match->end) {
      // After an empty match the next search begins one character later; an empty match at the end of the last match
      // does not count.
      position_ = match->end;
      if (position_ < text_.size()) {
        next_character(text_, &position_);
      } else {
        position_ = text_.size() + 1;
      }
      if (match->end == last_end_) continue;
    } else {
      position_ = match->end;
    }
    last_end_ = match->end;
    return true;
  }
  return false;
}

}  // namespace awq2trt
