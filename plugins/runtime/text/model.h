// What turns a word into ids: BPE (bpe.h) or Unigram (unigram.h), over one vocabulary; and what it works with.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace awq2trt {

struct Definition;

// The ids of words that were encoded before: words repeat. It forgets all of them when it is full.
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

// What one thread works with while it encodes.
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

  // Appends the ids of a word, not empty, to `ids`; bytes where the vocabulary is raw, else UTF-8.
  void encode(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const;

 protected:
  virtual void encode_anew(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const = 0;
};

// Tokens that text never becomes: special ones. By id.
using Forbidden = std::vector<bool>;

// Throws Error on a model that is not known. `definition.rest` is the whole file; the vocabulary outlives the model.
std::unique_ptr<SubwordModel> make_bpe(Definition* definition, const Vocabulary& vocabulary, const Forbidden& forbidden,
                                       const std::string& where);
std::unique_ptr<SubwordModel> make_unigram(Definition* definition, const Vocabulary& vocabulary,
                                           const Forbidden& forbidden, const std::string& where);

// Ids of <0x00> to <0xFF>, with which characters are spelled that have no token; kNone where there is none.
std::vector<int32_t> byte_tokens(const Vocabulary& vocabulary);

}  // namespace awq2trt
