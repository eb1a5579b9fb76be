// tokenizer.json as read from disk. In: the file, read in one pass and never completely in memory; out: vocabulary and
// merges in compact arrays, everything else as JSON. A document tree of a vocabulary of 128,000 tokens would take 100
// MB.
#pragma once

#include <cstdint>
#include <istream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace awq2trt {

struct Definition {
  struct Token {
    uint32_t begin, length;  // in `arena`
    int32_t id;              // BPE: as given; Unigram: its place in the list
  };
  struct Merge {
    uint32_t begin, left_length, right_length;  // in `arena`, the right part follows the left one
  };

  nlohmann::json rest;  // without model.vocab and model.merges
  std::string arena;
  std::vector<Token> tokens;
  std::vector<double> scores;  // log probabilities; one per token if the vocabulary is a list, otherwise empty
  std::vector<Merge> merges;
  bool has_vocabulary = false, vocabulary_is_list = false, has_merges = false;

  std::string_view text(const Token& token) const { return {arena.data() + token.begin, token.length}; }
};

// `where` names the file. Throws Error: not JSON, nested too deeply, a vocabulary that is neither of the two kinds.
Definition read_definition(std::istream& in, const std::string& where);

}  // namespace awq2trt
