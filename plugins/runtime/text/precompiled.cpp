// See precompiled.h.
#include "text/precompiled.h"

#include <utf8proc.h>

#include <cstring>

#include "awq2trt/awq2trt.hpp"
#include "text/unicode.h"

namespace awq2trt {
namespace {

std::string decode_base64(const std::string& text, const std::string& where) {
  std::string result;
  uint32_t bits = 0;
  int count = 0;
  for (size_t i = 0; i < text.size() && text[i] != '='; ++i) {
    const char c = text[i];
    const int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                      : c >= 'a' && c <= 'z' ? c - 'a' + 26
                      : c >= '0' && c <= '9' ? c - '0' + 52
                      : c == '+'             ? 62
                      : c == '/'             ? 63
                                             : -1;
    if (value < 0) throw Error(ErrorCode::kMalformed, "not base64 at byte " + std::to_string(i), where, "");
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      result += static_cast<char>(bits >> count & 0xFF);
    }
  }
  return result;
}

// Units of darts-clone's double array.
bool has_leaf(uint32_t unit) { return unit >> 8 & 1; }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFFu; }
uint32_t label_of(uint32_t unit) { return unit & 0x800000FFu; }
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }

// A cluster of more bytes is looked up character by character.
constexpr size_t kLongestCluster = 5;

}  // namespace

PrecompiledTable::PrecompiledTable(const std::string& base64, const std::string& where) {
  const std::string table = decode_base64(base64, where);
  uint32_t trie_bytes = 0;
  if (table.size() >= 4) std::memcpy(&trie_bytes, table.data(), 4);
  if (table.size() < 8 || trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes > table.size() - 4) {
    throw Error(ErrorCode::kMalformed, "not a compiled table of replacements", where, "");
  }
  units_.resize(trie_bytes / 4);
  std::memcpy(units_.data(), table.data() + 4, trie_bytes);
  replacements_ = table.substr(4 + trie_bytes);
  require_utf8(replacements_, where);
}

const char* PrecompiledTable::find(std::string_view text) const {
  size_t node = offset_of(units_[0]);
  for (const char c : text) {
    const uint32_t byte = static_cast<unsigned char>(c);
    if (byte == 0) return nullptr;
    node ^= byte;
    if (node >= units_.size()) return nullptr;
    const uint32_t unit = units_[node];
    if (label_of(unit) != byte) return nullptr;
    node ^= offset_of(unit);
    if (node >= units_.size()) return nullptr;
    if (has_leaf(unit)) {
      const uint32_t at = value_of(units_[node]);
      // An entry begins at the beginning of a character: the rest is UTF-8 whatever the table contains.
      const bool whole = at < replacements_.size() && (static_cast<unsigned char>(replacements_[at]) & 0xC0) != 0x80;
      return whole ? replacements_.c_str() + at : nullptr;
    }
  }
  return nullptr;
}

void PrecompiledTable::apply_(std::string* text) const {
  std::string result;
  result.reserve(text->size());
  const std::string_view all = *text;
  for (size_t begin = 0; begin < all.size();) {
    size_t end = begin;
    utf8proc_int32_t state = 0;
    char32_t before = next_character(all, &end);
    while (end < all.size()) {
      size_t behind = end;
      const char32_t next = next_character(all, &behind);
      if (utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(before), static_cast<utf8proc_int32_t>(next),
                                           &state)) {
        break;
      }
      before = next;
      end = behind;
    }
    const std::string_view cluster = all.substr(begin, end - begin);
    const char* whole = cluster.size() <= kLongestCluster ? find(cluster) : nullptr;
    if (whole != nullptr) {
      result += whole;
    } else {
      for (size_t i = 0; i < cluster.size();) {
        const size_t first = i;
        next_character(cluster, &i);
        const std::string_view character = cluster.substr(first, i - first);
        const char* replacement = find(character);
        if (replacement != nullptr) {
          result += replacement;
        } else {
          result += character;
        }
      }
    }
    begin = end;
  }
  *text = std::move(result);
}

}  // namespace awq2trt
