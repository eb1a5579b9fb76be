// The tokens of a tokenizer in little memory: one arena with the bytes of all, 4 bytes a token to find them by id, and
// an open-addressing table of ids to find them by their bytes.
//
// A byte-level tokenizer writes each byte as a printable character (byte_level.h). If `raw` is requested, tokens are
// kept as the bytes that they stand for; tokens that stand for no bytes, such as added tokens with a space, are
// `literal`.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace awq2trt {

uint64_t hash_bytes(std::string_view bytes);

class Vocabulary {
 public:
  static constexpr int32_t kNone = -1;
  static constexpr int32_t kMaxTokens = 1 << 22;  // ids beyond 4 million are treated as damage

  struct Entry {
    std::string_view text;
    int32_t id;
  };

  // Throws Error on ids that are negative, beyond kMaxTokens or given twice, and on a text given twice.
  void build(const std::vector<Entry>& entries, bool raw, const std::string& where);

  int32_t find(std::string_view bytes) const;  // id, or kNone; never a literal token of a raw vocabulary
  int32_t size() const { return static_cast<int32_t>(begins_.empty() ? 0 : begins_.size() - 1); }  // highest id + 1
  bool contains(int32_t id) const { return id >= 0 && id < size() && !is_hole(id); }
  std::string_view bytes(int32_t id) const { return {arena_.data() + begins_[id], begins_[id + 1] - begins_[id]}; }
  bool is_literal(int32_t id) const { return flags_[id] & kLiteral; }
  bool raw() const { return raw_; }
  std::string text(int32_t id) const;              // as tokenizer.json writes it
  int32_t find_text(std::string_view text) const;  // id of a text as tokenizer.json writes it, or kNone

 private:
  enum : uint8_t { kLiteral = 1, kHole = 2 };
  bool is_hole(int32_t id) const { return flags_[id] & kHole; }
  void insert(int32_t id, const std::string& where);

  std::string arena_;
  std::vector<uint32_t> begins_;
  std::vector<uint8_t> flags_;
  std::vector<int32_t> slots_;  // ids or kNone; a power of two, at most half full
  bool raw_ = false;
};

}  // namespace awq2trt
