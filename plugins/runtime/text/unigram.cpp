// The unigram language model. In: a word; out: the ids of the most probable way to cut it into tokens (Viterbi).
// Source: models/unigram of https://github.com/huggingface/tokenizers; tests check that the ids are the same, ties
// included.
#include <algorithm>
#include <limits>

#include "awq2trt/awq2trt.hpp"
#include "text/definition.h"
#include "text/json_fields.h"
#include "text/model.h"
#include "text/unicode.h"

namespace awq2trt {
namespace {

constexpr int32_t kNone = Vocabulary::kNone;
constexpr double kUnknownPenalty = 10.0;  // below the least probable token; SentencePiece's

// A trie of all tokens; the children of a node are contiguous, in the order of their bytes.
class Trie {
 public:
  struct Node {
    uint32_t first_child = 0;
    int32_t id = kNone;
    uint16_t children = 0;
    unsigned char byte = 0;
  };

  // `ids` of tokens to find, sorted by their bytes.
  void build(const Vocabulary& vocabulary, const std::vector<int32_t>& ids) {
    struct Range {
      uint32_t node;
      size_t begin, end, depth;
    };
    nodes_.assign(1, Node());
    std::vector<Range> ranges = {{0, 0, ids.size(), 0}};
    for (size_t next = 0; next < ranges.size(); ++next) {
      Range range = ranges[next];
      while (range.begin < range.end && vocabulary.bytes(ids[range.begin]).size() == range.depth) {
        nodes_[range.node].id = ids[range.begin++];
      }
      nodes_[range.node].first_child = static_cast<uint32_t>(nodes_.size());
      while (range.begin < range.end) {
        const char byte = vocabulary.bytes(ids[range.begin])[range.depth];
        size_t end = range.begin + 1;
        while (end < range.end && vocabulary.bytes(ids[end])[range.depth] == byte) ++end;
        ranges.push_back({static_cast<uint32_t>(nodes_.size()), range.begin, end, range.depth + 1});
        Node child;
        child.byte = static_cast<unsigned char>(byte);
        nodes_.push_back(child);
        ++nodes_[range.node].children;
        range.begin = end;
      }
      if (next > 4096 && next * 2 > ranges.size()) {  // finished ones take no memory
        ranges.erase(ranges.begin(), ranges.begin() + static_cast<std::ptrdiff_t>(next) + 1);
        next = static_cast<size_t>(-1);
      }
    }
    nodes_.shrink_to_fit();
    for (uint32_t i = 0; i < nodes_[0].children; ++i) {
      const uint32_t child = nodes_[0].first_child + i;
      roots_[nodes_[child].byte] = child;
    }
  }

  // The child of a node by a byte, or 0.
  uint32_t child(uint32_t node, unsigned char byte) const {
    if (node == 0) return roots_[byte];
    const Node* const begin = nodes_.data() + nodes_[node].first_child;
    const Node* const end = begin + nodes_[node].children;
    const Node* const found =
        std::lower_bound(begin, end, byte, [](const Node& a, unsigned char wanted) { return a.byte < wanted; });
    return found != end && found->byte == byte ? static_cast<uint32_t>(found - nodes_.data()) : 0;
  }
  int32_t id(uint32_t node) const { return nodes_[node].id; }

 private:
  std::vector<Node> nodes_;
  uint32_t roots_[256] = {};
};

class Unigram : public SubwordModel {
 public:
  Unigram(std::vector<double> scores, int32_t unknown, const std::string& where)
      : scores_(std::move(scores)), unknown_(unknown), where_(where) {
    for (const double score : scores_) least_ = std::min(least_, score);
  }

  void read_tokens(const Vocabulary& vocabulary, const Forbidden& forbidden, bool byte_fallback) {
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < static_cast<int32_t>(scores_.size()); ++id) {
      if (!forbidden[id] && !vocabulary.bytes(id).empty()) ids.push_back(id);
    }
    std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return vocabulary.bytes(a) < vocabulary.bytes(b); });
    trie_.build(vocabulary, ids);
    if (byte_fallback) ids_of_bytes_ = byte_tokens(vocabulary);
  }

 protected:
  void encode_anew(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const override {
    auto& nodes = scratch->nodes;
    nodes.assign(word.size() + 1, {0.0, -1, 0});
    const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
      Scratch::Node& node = nodes[end];
      if (node.begin < 0 || score > node.score) node = {score, static_cast<int32_t>(begin), id};
    };
    for (size_t begin = 0; begin < word.size();) {
      const double so_far = nodes[begin].score;
      size_t next = begin;
      next_character(word, &next);
      bool has_single = false;
      uint32_t at = 0;
      for (size_t end = begin; end < word.size();) {
        at = trie_.child(at, static_cast<unsigned char>(word[end++]));
        if (at == 0) break;
        const int32_t id = trie_.id(at);
        if (id == kNone) continue;
        offer(begin, end, scores_[id] + so_far, id);
        has_single = has_single || end == next;
      }
      if (!has_single) {
        if (unknown_ == kNone) {
          throw Error(ErrorCode::kMalformed, "a character has no token, and there is no unk_id", where_,
                      "use the tokenizer.json that belongs to the model.");
        }
        offer(begin, next, least_ - kUnknownPenalty + so_far, unknown_);
      }
      begin = next;
    }
    write(word, nodes, ids);
    constexpr size_t kKept = 1 << 14;
    if (nodes.capacity() > kKept) nodes = {};
  }

 private:
  // Walks back from the end; neighbours that are unknown are one.
  void write(std::string_view word, const std::vector<Scratch::Node>& nodes, std::vector<int32_t>* ids) const {
    const size_t first = ids->size();
    for (size_t end = word.size(); end > 0;) {
      size_t begin = static_cast<size_t>(nodes[end].begin);
      if (nodes[end].id != unknown_) {
        ids->push_back(nodes[end].id);
      } else {
        while (begin > 0 && nodes[begin].id == unknown_) begin = static_cast<size_t>(nodes[begin].begin);
        write_unknown(word.substr(begin, end - begin), ids);
      }
      end = begin;
    }
    std::reverse(ids->begin() + static_cast<std::ptrdiff_t>(first), ids->end());
  }

  void write_unknown(std::string_view text, std::vector<int32_t>* ids) const {
    const bool spelled = !ids_of_bytes_.empty() && std::all_of(text.begin(), text.end(), [&](char byte) {
      return ids_of_bytes_[static_cast<unsigned char>(byte)] != kNone;
    });
    if (!spelled) {
      ids->push_back(unknown_);
      return;
    }
    for (size_t i = text.size(); i-- > 0;) ids->push_back(ids_of_bytes_[static_cast<unsigned char>(text[i])]);
  }

  std::vector<double> scores_;
  int32_t unknown_;
  std::string where_;
  double least_ = std::numeric_limits<double>::infinity();
  Trie trie_;
  std::vector<int32_t> ids_of_bytes_;  // empty without byte_fallback
};

}  // namespace

std::unique_ptr<SubwordModel> make_unigram(Definition* definition, const Vocabulary& vocabulary,
                                           const Forbidden& forbidden, const std::string& where) {
  Fields fields(definition->rest.at("model"), where + ": model");
  fields.ignore("type");
  const bool byte_fallback = fields.flag_or("byte_fallback", false);
  const int64_t unknown = fields.find("unk_id") == nullptr ? kNone : fields.number("unk_id");
  fields.finish();
  if (unknown < kNone || unknown >= static_cast<int64_t>(definition->scores.size())) {
    throw Error(ErrorCode::kMalformed,
                "unk_id is " + std::to_string(unknown) + ", and the vocabulary has " +
                    std::to_string(definition->scores.size()) + " tokens",
                where + ": model", "");
  }
  auto model =
      std::make_unique<Unigram>(std::move(definition->scores), static_cast<int32_t>(unknown), where + ": model");
  model->read_tokens(vocabulary, forbidden, byte_fallback);
  return model;
}

}  // namespace awq2trt
