// Byte-pair encoding. In: a word; out: its ids, by merging the pair of neighbours whose merge was learnt first (the
// leftmost of equal pairs) until no pair can be merged. Source: models/bpe of
// https://github.com/huggingface/tokenizers; tests check that the ids are the same, including those of unknown tokens.
#include <algorithm>

#include "awq2trt/awq2trt.hpp"
#include "text/byte_level.h"
#include "text/definition.h"
#include "text/json_fields.h"
#include "text/model.h"
#include "text/unicode.h"

namespace awq2trt {
namespace {

constexpr int32_t kNone = Vocabulary::kNone;
constexpr int32_t kNoUnknown = -2;  // no unk_token is declared: text without a token is left out
constexpr uint32_t kNoMerge = UINT32_MAX;
constexpr char kSpaceMark[] = "\u2581";  // SentencePiece's for a space

// Up to this many symbols, searching all pairs for the best is faster than a heap.
constexpr size_t kFewSymbols = 48;

struct Merge {
  uint32_t left, right, rank;
  int32_t id;
};

// Pairs of ids to merges: open addressing, at most three quarters full.
class MergeTable {
 public:
  void reserve(size_t count) {
    while (3 * (size_t{1} << bits_) < 4 * count + 4) ++bits_;
    slots_.assign(size_t{1} << bits_, Merge{kNoMerge, 0, kNoMerge, kNone});
  }

  // A repeated pair gets the later rank, as in Hugging Face's table.
  void insert(const Merge& merge) { slots_[slot_of(merge.left, merge.right)] = merge; }

  const Merge& find(int32_t left, int32_t right) const {
    return slots_[slot_of(static_cast<uint32_t>(left), static_cast<uint32_t>(right))];
  }

 private:
  // The slot of the pair, or the free slot where it would be.
  size_t slot_of(uint32_t left, uint32_t right) const {
    const uint64_t key = uint64_t{left} << 32 | right;
    size_t slot = (key * 0x9E3779B97F4A7C15u) >> (64 - bits_);
    while (slots_[slot].left != kNoMerge && (slots_[slot].left != left || slots_[slot].right != right)) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  int bits_ = 4;
  std::vector<Merge> slots_;
};

struct Options {
  int32_t unknown = kNoUnknown;  // an id, kNoUnknown, or kNone: declared, but not in the vocabulary
  bool fuse_unknown = false, byte_fallback = false, ignore_merges = false;
};

class Bpe : public SubwordModel {
 public:
  Bpe(const Vocabulary& vocabulary, const Forbidden& forbidden, const Options& options)
      : vocabulary_(vocabulary), forbidden_(forbidden), options_(options) {
    ids_of_bytes_ = byte_tokens(vocabulary);
    spelled_ = options.byte_fallback &&
               std::all_of(ids_of_bytes_.begin(), ids_of_bytes_.end(), [](int32_t id) { return id != kNone; });
    for (int c = 0; c < 256; ++c) {
      const char byte = static_cast<char>(c);
      first_ids_.push_back(c < 128 || vocabulary.raw() ? allowed(vocabulary.find({&byte, 1})) : kNone);
    }
  }

  // Throws Error if a part or the result of a merge is not in the vocabulary.
  void read_merges(Definition* definition, const std::string& where) {
    merges_.reserve(definition->merges.size());
    bool crosses_spaces = false;
    std::string buffer;
    uint32_t rank = 0;
    for (const Definition::Merge& merge : definition->merges) {
      const char* begin = definition->arena.data() + merge.begin;
      const std::string_view left(begin, merge.left_length), right(begin + merge.left_length, merge.right_length);
      const int32_t ids[] = {lookup(left, &buffer), lookup(right, &buffer),
                             lookup({begin, left.size() + right.size()}, &buffer)};
      if (ids[0] == kNone || ids[1] == kNone || ids[2] == kNone) {
        throw Error(ErrorCode::kMalformed,
                    "the merge of " + std::string(left) + " and " + std::string(right) +
                        " has a token that is not in the vocabulary",
                    where + ": model.merges", "");
      }
      if (allowed(ids[2]) != kNone) {
        merges_.insert({static_cast<uint32_t>(ids[0]), static_cast<uint32_t>(ids[1]), rank, ids[2]});
      }
      ++rank;
      crosses_spaces = crosses_spaces || (starts_with_mark(right) && !ends_with_mark(left));
    }
    // Where no merge reaches over the beginning of a word, words can be merged one by one, and looked up in the cache.
    splits_at_marks_ = !vocabulary_.raw() && !crosses_spaces && allowed(vocabulary_.find(kSpaceMark)) != kNone;
  }

 protected:
  void encode_anew(std::string_view word, Scratch* scratch, std::vector<int32_t>* ids) const override {
    if (options_.ignore_merges) {
      const int32_t whole = allowed(vocabulary_.find(word));
      if (whole != kNone) {
        ids->push_back(whole);
        return;
      }
    } else if (splits_at_marks_) {
      const size_t end = next_word(word, 0);
      if (end < word.size()) {
        for (size_t begin = 0, stop = end; begin < word.size(); begin = stop, stop = next_word(word, begin)) {
          encode(word.substr(begin, stop - begin), scratch, ids);
        }
        return;
      }
    }
    std::vector<int32_t>& symbols = scratch->word;
    symbols.clear();
    read_symbols(word, &symbols);
    if (symbols.size() <= kFewSymbols) {
      merge_few(&symbols);
      ids->insert(ids->end(), symbols.begin(), symbols.end());
    } else {
      merge_many(symbols, scratch, ids);
    }
  }

 private:
  static bool starts_with_mark(std::string_view text) { return text.substr(0, 3) == kSpaceMark; }
  static bool ends_with_mark(std::string_view text) {
    return text.size() >= 3 && text.substr(text.size() - 3) == kSpaceMark;
  }

  int32_t lookup(std::string_view text, std::string* buffer) const {
    if (!vocabulary_.raw()) return vocabulary_.find(text);
    return byte_level::to_bytes(text, buffer) ? vocabulary_.find(*buffer) : kNone;
  }
  int32_t allowed(int32_t id) const { return id != kNone && forbidden_[id] ? kNone : id; }

  // The end of the word that begins at `begin`: where a mark follows something else.
  static size_t next_word(std::string_view text, size_t begin) {
    for (size_t found = text.find(kSpaceMark, begin); found != std::string_view::npos;
         found = text.find(kSpaceMark, found + 3)) {
      if (found > begin && !ends_with_mark(text.substr(begin, found - begin))) return found;
    }
    return text.size();
  }

  void read_symbols(std::string_view word, std::vector<int32_t>* symbols) const {
    int32_t unknown = kNoUnknown;  // not yet one of the symbols, since the next may be fused with it
    for (size_t i = 0; i < word.size();) {
      const size_t begin = i;
      int32_t id = first_ids_[static_cast<unsigned char>(word[i])];
      if (vocabulary_.raw() || static_cast<unsigned char>(word[i]) < 128) {
        ++i;
      } else {
        next_character(word, &i);
        id = allowed(vocabulary_.find(word.substr(begin, i - begin)));
      }
      if (id != kNone) {
        if (unknown != kNoUnknown) symbols->push_back(unknown);
        unknown = kNoUnknown;
        symbols->push_back(id);
      } else if (spelled_ || (options_.byte_fallback && can_spell(word.substr(begin, i - begin)))) {
        for (size_t at = begin; at < i; ++at) {
          symbols->push_back(ids_of_bytes_[static_cast<unsigned char>(word[at])]);
        }
      } else if (options_.unknown == kNone) {
        throw Error(ErrorCode::kMalformed, "a character has no token, and unk_token is not in the vocabulary",
                    "tokenizer.json: model", "use the tokenizer.json that belongs to the model.");
      } else if (options_.unknown != kNoUnknown) {
        if (unknown != kNoUnknown && !options_.fuse_unknown) symbols->push_back(unknown);
        unknown = options_.unknown;
      }
    }
    if (unknown != kNoUnknown) symbols->push_back(unknown);
  }

  bool can_spell(std::string_view bytes) const {
    return std::all_of(bytes.begin(), bytes.end(),
                       [&](char byte) { return ids_of_bytes_[static_cast<unsigned char>(byte)] != kNone; });
  }

  void merge_few(std::vector<int32_t>* symbols) const {
    int32_t* const ids = symbols->data();
    size_t count = symbols->size();
    uint32_t ranks[kFewSymbols];
    int32_t merged[kFewSymbols];
    const auto look_up = [&](size_t i) {
      const Merge& merge = merges_.find(ids[i], ids[i + 1]);
      ranks[i] = merge.rank;
      merged[i] = merge.id;
    };
    for (size_t i = 0; i + 1 < count; ++i) look_up(i);
    while (count > 1) {
      const size_t best = static_cast<size_t>(std::min_element(ranks, ranks + count - 1) - ranks);
      if (ranks[best] == kNoMerge) break;
      ids[best] = merged[best];
      std::copy(ids + best + 2, ids + count, ids + best + 1);
      std::copy(ranks + best + 1, ranks + count - 1, ranks + best);
      std::copy(merged + best + 1, merged + count - 1, merged + best);
      --count;
      if (best + 1 < count) look_up(best);
      if (best > 0) look_up(best - 1);
    }
    symbols->resize(count);
  }

  void merge_many(const std::vector<int32_t>& word, Scratch* scratch, std::vector<int32_t>* ids) const {
    using Candidate = Scratch::Candidate;
    auto& symbols = scratch->symbols;
    auto& heap = scratch->candidates;
    const auto later = [](const Candidate& a, const Candidate& b) {
      return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
    };
    symbols.clear();
    heap.clear();
    const auto count = static_cast<int32_t>(word.size());
    for (int32_t i = 0; i < count; ++i) symbols.push_back({word[i], i - 1, i + 1 < count ? i + 1 : -1});
    const auto candidate_at = [&](int32_t i) -> Candidate {
      const int32_t next = symbols[i].next;
      if (next < 0) return {kNoMerge, i, kNone};
      const Merge& merge = merges_.find(symbols[i].id, symbols[next].id);
      return {merge.rank, i, merge.id};
    };
    const auto push = [&](int32_t i) {
      const Candidate candidate = candidate_at(i);
      if (candidate.rank == kNoMerge) return;
      heap.push_back(candidate);
      std::push_heap(heap.begin(), heap.end(), later);
    };
    for (int32_t i = 0; i < count; ++i) {
      const Candidate candidate = candidate_at(i);
      if (candidate.rank != kNoMerge) heap.push_back(candidate);
    }
    std::make_heap(heap.begin(), heap.end(), later);
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end(), later);
      const Candidate best = heap.back();
      heap.pop_back();
      Scratch::Symbol& left = symbols[best.position];
      // A symbol that was merged since, or that has another neighbour now, no longer matches the candidate.
      if (left.id == kNone || candidate_at(best.position).id != best.id) continue;
      Scratch::Symbol& right = symbols[left.next];
      left.id = best.id;
      right.id = kNone;
      left.next = right.next;
      if (left.next >= 0) symbols[left.next].previous = best.position;
      push(best.position);
      if (left.previous >= 0) push(left.previous);
    }
    for (int32_t i = 0; i >= 0; i = symbols[i].next) ids->push_back(symbols[i].id);
    release(scratch);
  }

  // A long text's working memory is not kept.
  static void release(Scratch* scratch) {
    constexpr size_t kKept = 1 << 14;
    if (scratch->symbols.capacity() > kKept) scratch->symbols = {};
    if (scratch->candidates.capacity() > kKept) scratch->candidates = {};
    if (scratch->word.capacity() > kKept) scratch->word = {};
  }

  const Vocabulary& vocabulary_;
  const Forbidden& forbidden_;
  Options options_;
  MergeTable merges_;
  std::vector<int32_t> ids_of_bytes_;  // of <0x00> and following
  std::vector<int32_t> first_ids_;     // of single bytes: all if the vocabulary is raw, otherwise ASCII
  bool spelled_ = false;               // any character can be spelled with bytes
  bool splits_at_marks_ = false;
};

}  // namespace

std::unique_ptr<SubwordModel> make_bpe(Definition* definition, const Vocabulary& vocabulary, const Forbidden& forbidden,
                                       const std::string& where) {
  Fields fields(definition->rest.at("model"), where + ": model");
  fields.ignore("type");
  Options options;
  options.fuse_unknown = fields.flag_or("fuse_unk", false);
  options.byte_fallback = fields.flag_or("byte_fallback", false);
  options.ignore_merges = fields.flag_or("ignore_merges", false);
  if (fields.find("unk_token") != nullptr) options.unknown = vocabulary.find_text(fields.text("unk_token"));
  const nlohmann::json* dropout = fields.find("dropout");
  if (dropout != nullptr && *dropout != 0.0) refuse_unknown("dropout, which makes ids random,", fields.where());
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!fields.text_or(affix, "").empty()) refuse_unknown(std::string("a ") + affix, fields.where());
  }
  if (options.byte_fallback && vocabulary.raw()) {
    refuse_unknown("byte_fallback together with the pre-tokenizer ByteLevel", fields.where());
  }
  fields.finish();
  auto model = std::make_unique<Bpe>(vocabulary, forbidden, options);
  model->read_merges(definition, where);
  return model;
}

}  // namespace awq2trt
