// See vocabulary.h.
#include "text/vocabulary.h"

#include <algorithm>
#include <cstring>

#include "awq2trt/awq2trt.hpp"
#include "text/byte_level.h"

namespace awq2trt {

uint64_t hash_bytes(std::string_view bytes) {
  // Eight bytes at a time, multiplied and folded; the constants are odd numbers from the golden ratio and from pi.
  constexpr uint64_t kFirst = 0x9E3779B97F4A7C15u, kSecond = 0x243F6A8885A308D3u;
  const auto mix = [](uint64_t a, uint64_t b) {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  };
  uint64_t hash = kFirst ^ bytes.size();
  const char* at = bytes.data();
  size_t left = bytes.size();
  uint64_t block = 0;
  for (; left >= 8; left -= 8, at += 8) {
    std::memcpy(&block, at, 8);
    hash = mix(hash ^ block, kSecond);
  }
  block = 0;
  if (left > 0) std::memcpy(&block, at, left);
  return mix(hash ^ block, kFirst);
}

void Vocabulary::build(const std::vector<Entry>& entries, bool raw, const std::string& where) {
  raw_ = raw;
  int32_t highest = -1;
  for (const Entry& entry : entries) {
    if (entry.id < 0 || entry.id >= kMaxTokens) {
      throw Error(ErrorCode::kMalformed,
                  "the token " + std::string(entry.text) + " has the id " + std::to_string(entry.id) +
                      ", ids from 0 to " + std::to_string(kMaxTokens - 1) + " are expected",
                  where, "");
    }
    highest = std::max(highest, entry.id);
  }
  std::vector<uint32_t> of_id(static_cast<size_t>(highest) + 1, UINT32_MAX);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (of_id[entries[i].id] != UINT32_MAX) {
      throw Error(ErrorCode::kMalformed,
                  "the id " + std::to_string(entries[i].id) + " is two tokens': " +
                      std::string(entries[of_id[entries[i].id]].text) + " and " + std::string(entries[i].text),
                  where, "");
    }
    of_id[entries[i].id] = static_cast<uint32_t>(i);
  }
  begins_.reserve(of_id.size() + 1);
  flags_.assign(of_id.size(), 0);
  begins_.push_back(0);
  std::string bytes;
  for (size_t id = 0; id < of_id.size(); ++id) {
    if (of_id[id] == UINT32_MAX) {
      flags_[id] = kHole;
    } else {
      const std::string_view text = entries[of_id[id]].text;
      if (raw && byte_level::to_bytes(text, &bytes)) {
        arena_ += bytes;
      } else {
        arena_ += text;
        if (raw) flags_[id] = kLiteral;
      }
    }
    if (arena_.size() > UINT32_MAX) {
      throw Error(ErrorCode::kLimit, "the tokens together have more than 4 GiB", where, "");
    }
    begins_.push_back(static_cast<uint32_t>(arena_.size()));
  }
  arena_.shrink_to_fit();
  size_t slots = 16;
  while (slots < 2 * entries.size()) slots *= 2;
  slots_.assign(slots, kNone);
  for (int32_t id = 0; id <= highest; ++id) {
    if (!is_hole(id) && !is_literal(id)) insert(id, where);
  }
}

void Vocabulary::insert(int32_t id, const std::string& where) {
  const std::string_view key = bytes(id);
  size_t slot = hash_bytes(key) & (slots_.size() - 1);
  while (slots_[slot] != kNone) {
    if (bytes(slots_[slot]) == key) {
      throw Error(
          ErrorCode::kMalformed,
          "the token " + text(id) + " has two ids: " + std::to_string(slots_[slot]) + " and " + std::to_string(id),
          where, "");
    }
    slot = (slot + 1) & (slots_.size() - 1);
  }
  slots_[slot] = id;
}

int32_t Vocabulary::find(std::string_view key) const {
  if (slots_.empty()) return kNone;
  size_t slot = hash_bytes(key) & (slots_.size() - 1);
  while (slots_[slot] != kNone) {
    if (bytes(slots_[slot]) == key) return slots_[slot];
    slot = (slot + 1) & (slots_.size() - 1);
  }
  return kNone;
}

std::string Vocabulary::text(int32_t id) const {
  if (!raw_ || is_literal(id)) return std::string(bytes(id));
  return byte_level::to_characters(bytes(id));
}

int32_t Vocabulary::find_text(std::string_view wanted) const {
  if (!raw_) return find(wanted);
  std::string raw_bytes;
  if (byte_level::to_bytes(wanted, &raw_bytes)) return find(raw_bytes);
  for (int32_t id = 0; id < size(); ++id) {
    if (is_literal(id) && bytes(id) == wanted) return id;
  }
  return kNone;
}

}  // namespace awq2trt
