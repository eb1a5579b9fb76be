// The model that turns a word into ids, BPE (bpe.h) or Unigram (unigram.h), and the buffers that it works with.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace awq2trt {

struct Definition;

// A cache of the ids of words that were encoded before, since words repeat. When full, it forgets all of them.
class WordCache {
 public:
  static constexpr size_t kSlots = 1 << 14;
  static constexpr size_t kLongestWord = 64;    // bytes; longer words rarely come again
  static constexpr size_t kKeyBytes = 1 << 18;  // of all words together
  static constexpr size_t kIds = 1 << 17;       // of all words together

  // Appends the ids of `word` to `ids` if they are known.
  bool find(std::string_view word, uint64_t hash, std::vector<int32_t>* ids) const;
  void insert(std::string_view word, uint64_t hash, const int32_t* ids, size_t count);

 private:
  struct Slot {
    uint32_t hash = 0, key = 0, ids = 0;
    uint16_t key_length = 0;  // 0: free
    uint16_t id_count = 0;
  };
  std::vector<Slot> slots_;
  std::vector<char> keys_;
  std::vector<int32_t> ids_;
  size_t used_ = 0;
};

// The buffers of one thread while it encodes.
struct Scratch {
  struct Symbol {
    int32_t id, previous, next;
  };
  struct Candidate {
    uint32_t rank;
    int32_t position, id;
  };
  struct Node {
    double score;
    int32_t begin, id;
  };
  WordCache cache;
  std::vector<Symbol> symbols;
  std::vector<Candidate> candidates;
  std::vector<Node> nodes;
  std::vector<int32_t> word;
};

class SubwordModel {
 public:
  virtual ~SubwordModel() = default;

  // Appends the ids of `word`, which is not empty, to `ids`. The word is bytes if the vocabulary is raw, otherwise
  // UTF-8.
  void encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

 protected:
  virtual void encode_anew(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const = 0;
};

// By id: special tokens, which text never becomes.
using Forbidden = std::vector<bool>;

// Throws Error on an unknown model. `definition.rest` is the whole file; the vocabulary outlives the model.
std::unique_ptr<SubwordModel> make_bpe(Definition* definition, const Vocabulary& vocabulary, const Forbidden& forbidden,
                                       const std::string& where);
std::unique_ptr<SubwordModel> make_unigram(Definition* definition, const Vocabulary& vocabulary,
                                           const Forbidden& forbidden, const std::string& where);

// Ids of <0x00> to <0xFF>, which spell characters that have no token; kNone if the vocabulary lacks one.
std::vector<int32_t> byte_tokens(const Vocabulary& vocabulary);

}  // namespace awq2trt
