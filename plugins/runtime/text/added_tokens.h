// Tokens of `added_tokens`, which are found in text before it is split into words. In: text; out: the tokens in it and
// the texts between them.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "text/normalizers.h"
#include "text/regex.h"
#include "text/vocabulary.h"

namespace awq2trt {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

// Throws Error on anything unknown.
std::vector<AddedToken> read_added_tokens(const nlohmann::json& list, const std::string& where);

// A token found, or text between tokens.
struct Section {
  Span span;
  int32_t id;  // kNone: text
};

class AddedTokens {
 public:
  // Special tokens are found only in these parts of a text, which are in order and do not overlap.
  using Trusted = std::vector<Span>;

  AddedTokens() = default;
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer);

  // Tokens that are searched for in raw text, and tokens that are searched for in normalized text. `find_raw` also
  // finds special ones of the second kind where `special_as_written` is set.
  std::vector<Section> find_raw(std::string_view text, const Trusted& trusted, bool special_as_written) const;
  std::vector<Section> find_normalized(std::string_view text, bool trusted) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  bool is_special(int32_t id) const { return static_cast<size_t>(id) < special_.size() && special_[id]; }
  const std::vector<bool>& special() const { return special_; }
  void resize_special(size_t size) { special_.resize(size); }

 private:
  struct Pattern {
    std::string text;
    const AddedToken* token;
    bool as_written;  // searched for in raw text only where `special_as_written` is set
  };
  // Patterns in the order of their bytes, and for each first byte where they begin.
  struct Set {
    std::vector<Pattern> patterns;
    uint32_t begins[257] = {};

    void add(std::string text, const AddedToken& token, bool as_written);
    void sort();
  };
  std::vector<Section> find(const Set& set, std::string_view text, const Trusted& trusted, bool as_written) const;

  std::vector<AddedToken> tokens_;
  std::vector<bool> special_;  // by id
  Set raw_, normalized_;
};

}  // namespace awq2trt
