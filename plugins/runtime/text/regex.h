// Regular expressions of tokenizer.json, which are written for Oniguruma (Ruby's syntax), run by PCRE2's JIT. In: a
// pattern; out: matches in UTF-8 text. Where the two syntaxes differ, the pattern is translated (\s, ^, $) or refused
// (\h, &&, sets within sets), so that it never silently means something else.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace awq2trt {

// Offsets of bytes.
struct Span {
  size_t begin, end;

  size_t size() const { return end - begin; }
};

// Safe to share between threads.
class Regex {
 public:
  // `where` names the place in tokenizer.json, for errors.
  Regex(std::string_view pattern, const std::string& where);
  static Regex of_literal(std::string_view text, const std::string& where);

  // Iterates over the matches of a text from left to right, as Oniguruma and Rust's find_iter do.
  class Matches {
   public:
    Matches(const Regex& regex, std::string_view text);
    bool next(Span* match);

   private:
    struct Free {
      void operator()(void* data) const;
    };
    const Regex& regex_;
    std::string_view text_;
    std::unique_ptr<void, Free> data_;
    size_t position_ = 0;
    size_t last_end_ = std::string_view::npos;
  };

 private:
  struct FreeCode {
    void operator()(void* code) const;
  };
  std::string where_;
  std::shared_ptr<void> code_;
};

}  // namespace awq2trt
