// See added_tokens.h. Source: added_vocabulary.rs of https://github.com/huggingface/tokenizers: of tokens that begin at
// the same place the longest is taken, and the search continues after it.
#include "text/added_tokens.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"
#include "text/json_fields.h"
#include "text/unicode.h"

namespace awq2trt {
namespace {

constexpr int32_t kNone = Vocabulary::kNone;

bool starts_with_word(std::string_view text) {
  size_t i = 0;
  return is_word(next_character(text, &i));
}

bool ends_with_word(std::string_view text) {
  return starts_with_word(text.substr(previous_character(text, text.size())));
}

size_t spaces_at_end(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    size_t i = previous_character(text, begin);
    const size_t candidate = i;
    if (!is_space(next_character(text, &i))) break;
    begin = candidate;
  }
  return begin;
}

size_t spaces_at_start(std::string_view text) {
  size_t end = 0;
  while (end < text.size()) {
    size_t i = end;
    if (!is_space(next_character(text, &i))) break;
    end = i;
  }
  return end;
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const nlohmann::json& list, const std::string& where) {
  if (!list.is_array()) throw Error(ErrorCode::kMalformed, "a list is expected", where, "");
  std::vector<AddedToken> tokens;
  for (size_t i = 0; i < list.size(); ++i) {
    Fields fields(list[i], where + "[" + std::to_string(i) + "]");
    AddedToken token;
    const int64_t id = fields.number("id");
    if (id < 0 || id >= Vocabulary::kMaxTokens) {
      throw Error(ErrorCode::kMalformed, "the id " + std::to_string(id) + " cannot be a token's", fields.where(), "");
    }
    token.id = static_cast<int32_t>(id);
    token.content = fields.text("content");
    token.single_word = fields.flag("single_word");
    token.lstrip = fields.flag("lstrip");
    token.rstrip = fields.flag("rstrip");
    token.normalized = fields.flag("normalized");
    token.special = fields.flag("special");
    fields.finish();
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

void AddedTokens::Set::add(std::string text, const AddedToken& token, bool as_written) {
  if (!text.empty()) patterns.push_back({std::move(text), &token, as_written});
}

void AddedTokens::Set::sort() {
  // Two tokens may have the same text: the later id is found first.
  std::sort(patterns.begin(), patterns.end(), [](const Pattern& a, const Pattern& b) {
    return a.text != b.text ? a.text < b.text : a.token->id < b.token->id;
  });
  for (int byte = 0; byte < 256; ++byte) {
    const auto first = std::lower_bound(patterns.begin(), patterns.end(), byte, [](const Pattern& a, int wanted) {
      return static_cast<unsigned char>(a.text[0]) < wanted;
    });
    begins[byte] = static_cast<uint32_t>(first - patterns.begin());
  }
  begins[256] = static_cast<uint32_t>(patterns.size());
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer) : tokens_(std::move(tokens)) {
  for (const AddedToken& token : tokens_) {
    if (special_.size() <= static_cast<size_t>(token.id)) special_.resize(static_cast<size_t>(token.id) + 1);
    if (token.special) special_[token.id] = true;
    if (!token.normalized) {
      raw_.add(token.content, token, false);
      continue;
    }
    std::string text = token.content;
    if (normalizer != nullptr) normalizer->apply_(&text);
    normalized_.add(std::move(text), token, false);
    if (token.special) raw_.add(token.content, token, true);
  }
  raw_.sort();
  normalized_.sort();
}

std::vector<Section> AddedTokens::find_raw(std::string_view text, const Trusted& trusted,
                                           bool special_as_written) const {
  return find(raw_, text, trusted, special_as_written);
}

std::vector<Section> AddedTokens::find_normalized(std::string_view text, bool trusted) const {
  return find(normalized_, text, trusted ? Trusted{{0, text.size()}} : Trusted(), true);
}

std::vector<Section> AddedTokens::find(const Set& set, std::string_view text, const Trusted& trusted,
                                       bool as_written) const {
  std::vector<Section> sections;
  size_t done = 0;
  auto range = trusted.begin();
  const auto acceptable = [&](const Pattern& pattern, size_t at) {
    if (pattern.as_written && !as_written) return false;
    if (!pattern.token->special) return true;
    return range != trusted.end() && range->begin <= at && at + pattern.text.size() <= range->end;
  };
  for (size_t at = 0; at < text.size();) {
    while (range != trusted.end() && range->end <= at) ++range;
    const auto byte = static_cast<unsigned char>(text[at]);
    const uint32_t first = set.begins[byte], last = set.begins[byte + 1];
    const Pattern* found = nullptr;
    if (first != last) {
      // Patterns are sorted: the prefixes of `text` come before all greater patterns, the longest prefix last.
      const std::string_view rest = text.substr(at);
      const auto begin = set.patterns.begin() + first;
      auto pattern =
          std::upper_bound(begin, set.patterns.begin() + last, rest,
                           [](std::string_view wanted, const Pattern& a) { return wanted < std::string_view(a.text); });
      while (pattern != begin && found == nullptr) {
        --pattern;
        const bool matches = rest.substr(0, pattern->text.size()) == pattern->text;
        if (matches && acceptable(*pattern, at)) found = &*pattern;
        // Before a pattern that shares n bytes with the text, only its prefixes of at most n bytes can match.
        if (!matches && rest[0] == pattern->text[0] && pattern != begin) {
          size_t shared = 0;
          while (shared < rest.size() && shared < pattern->text.size() && rest[shared] == pattern->text[shared])
            ++shared;
          pattern = std::upper_bound(
              begin, pattern, rest.substr(0, shared),
              [](std::string_view wanted, const Pattern& a) { return wanted < std::string_view(a.text); });
        }
      }
    }
    if (found == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + found->text.size();
    at = end;
    const AddedToken& token = *found->token;
    if (token.single_word && ((begin > 0 && ends_with_word(text.substr(0, begin))) ||
                              (end < text.size() && starts_with_word(text.substr(end))))) {
      continue;
    }
    if (token.lstrip) begin = std::max(spaces_at_end(text.substr(0, begin)), done);
    if (token.rstrip) end += spaces_at_start(text.substr(end));
    if (begin > done) sections.push_back({{done, begin}, kNone});
    sections.push_back({{begin, end}, token.id});
    done = end;
    at = std::max(at, end);
  }
  if (done < text.size()) sections.push_back({{done, text.size()}, kNone});
  return sections;
}

}  // namespace awq2trt
