// The cache of words in front of every model; see model.h.
#include "text/model.h"

#include <algorithm>
#include <cstdio>

#include "text/definition.h"

namespace awq2trt {

bool WordCache::find(std::string_view word, uint64_t hash, std::vector<int32_t>* ids) const {
  if (slots_.empty()) return false;
  for (size_t i = hash & (kSlots - 1); slots_[i].key_length != 0; i = (i + 1) & (kSlots - 1)) {
    const Slot& slot = slots_[i];
    if (slot.hash == static_cast<uint32_t>(hash >> 32) &&
        std::string_view(keys_.data() + slot.key, slot.key_length) == word) {
      ids->insert(ids->end(), ids_.begin() + slot.ids, ids_.begin() + slot.ids + slot.id_count);
      return true;
    }
  }
  return false;
}

void WordCache::insert(std::string_view word, uint64_t hash, const int32_t* ids, size_t count) {
  if (slots_.empty() || used_ >= kSlots / 2 || keys_.size() + word.size() > kKeyBytes || ids_.size() + count > kIds) {
    slots_.assign(kSlots, Slot());
    keys_.clear();
    ids_.clear();
    used_ = 0;
  }
  size_t i = hash & (kSlots - 1);
  while (slots_[i].key_length != 0) i = (i + 1) & (kSlots - 1);
  slots_[i] = {static_cast<uint32_t>(hash >> 32), static_cast<uint32_t>(keys_.size()),
               static_cast<uint32_t>(ids_.size()), static_cast<uint16_t>(word.size()), static_cast<uint16_t>(count)};
  keys_.insert(keys_.end(), word.begin(), word.end());
  ids_.insert(ids_.end(), ids, ids + count);
  ++used_;
}

void SubwordModel::encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (word.size() > WordCache::kLongestWord) {
    encode_anew(word, scratch, ids);
    return;
  }
  const uint64_t hash = hash_bytes(word);
  if (scratch->cache.find(word, hash, ids)) return;
  const size_t before = ids->size();
  encode_anew(word, scratch, ids);
  // At most four ids per byte: a byte-level character without a token is spelled by the bytes of its UTF-8.
  scratch->cache.insert(word, hash, ids->data() + before, ids->size() - before);
}

std::vector<int32_t> byte_tokens(const Vocabulary& vocabulary) {
  std::vector<int32_t> ids(256);
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof(text), "<0x%02X>", byte);
    ids[byte] = vocabulary.find(text);
  }
  return ids;
}

}  // namespace awq2trt
