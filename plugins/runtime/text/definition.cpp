// The parser of tokenizer.json; see definition.h.
#include "text/definition.h"

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

using nlohmann::json;

constexpr size_t kDeepest = 64;                  // levels of nesting; files in use have 10
constexpr size_t kArenaLimit = size_t{1} << 30;  // bytes of all tokens and merges; files in use have 20 MB
constexpr size_t kRestLimit = 4'000'000;         // values other than these two; added tokens make up to 100,000 of them

class Reader : public nlohmann::json_sax<json> {
 public:
  Reader(Definition* definition, const std::string& where) : definition_(*definition), where_(where) {}

  bool null() override { return place(nullptr); }
  bool boolean(bool value) override { return place(value); }
  bool number_integer(number_integer_t value) override { return number(value, static_cast<double>(value), value); }
  bool number_unsigned(number_unsigned_t value) override {
    return number(value, static_cast<double>(value), value > INT32_MAX ? -1 : static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return number(value, value, -1); }
  bool string(string_t& value) override {
    if (section_ == Section::kNone) return place(value);
    if (section_ == Section::kMerges) return merge_text(value);
    if (!definition_.vocabulary_is_list || inner_ != 1) bad_vocabulary();
    ++inner_;
    return token_text(value);
  }
  bool binary(binary_t&) override { return false; }

  bool start_object(std::size_t) override {
    deeper();
    if (section_ != Section::kNone) bad_vocabulary();
    if (at_model() && key_ == "vocab") return begin(Section::kVocabulary, false);
    return open(json::object());
  }
  bool key(string_t& value) override {
    if (section_ == Section::kVocabulary) return token_text(value);
    key_ = value;
    return true;
  }
  bool end_object() override { return close(); }
  bool start_array(std::size_t) override {
    deeper();
    if (section_ == Section::kNone) {
      if (at_model() && key_ == "vocab") return begin(Section::kVocabulary, true);
      if (at_model() && key_ == "merges") return begin(Section::kMerges, true);
      return open(json::array());
    }
    if (inner_ != 0 || (section_ == Section::kVocabulary && !definition_.vocabulary_is_list)) bad_vocabulary();
    inner_ = 1;
    return true;
  }
  bool end_array() override {
    if (section_ != Section::kNone && inner_ != 0) {
      --depth_;
      if (inner_ != 3) bad_vocabulary();
      inner_ = 0;
      return true;
    }
    return close();
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    throw Error(ErrorCode::kMalformed, "not JSON at byte " + std::to_string(position) + ": " + error.what(), where_,
                "copy the model's tokenizer.json again.");
  }

 private:
  enum class Section { kNone, kVocabulary, kMerges };

  [[noreturn]] void bad_vocabulary() const {
    throw Error(ErrorCode::kMalformed,
                section_ == Section::kMerges
                    ? "a merge is a string of two tokens, or a list of two strings"
                    : "a vocabulary is an object of ids, or a list of pairs of a token and a number",
                where_ + ": model", "copy the model's tokenizer.json again.");
  }
  void deeper() {
    if (++depth_ > kDeepest) {
      throw Error(ErrorCode::kLimit, "nested more than " + std::to_string(kDeepest) + " levels deep", where_, "");
    }
  }
  bool at_model() const { return stack_.size() == 2 && in_model_; }
  bool begin(Section section, bool list) {
    bool& seen = section == Section::kMerges ? definition_.has_merges : definition_.has_vocabulary;
    section_ = section;
    if (seen) bad_vocabulary();
    seen = true;
    if (section == Section::kVocabulary) definition_.vocabulary_is_list = list;
    return true;
  }
  bool close() {
    --depth_;
    if (section_ != Section::kNone) {
      section_ = Section::kNone;
    } else {
      stack_.pop_back();
      if (stack_.size() == 1) in_model_ = false;
    }
    return true;
  }
  bool open(json value) {
    if (stack_.size() == 1) in_model_ = key_ == "model";
    stack_.push_back(add(std::move(value)));
    return true;
  }
  bool place(json value) {
    if (section_ != Section::kNone) bad_vocabulary();
    add(std::move(value));
    return true;
  }
  json* add(json value) {
    if (++values_ > kRestLimit) throw Error(ErrorCode::kLimit, "too many values", where_, "");
    if (stack_.empty()) {
      definition_.rest = std::move(value);
      return &definition_.rest;
    }
    json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    if (parent.contains(key_)) throw Error(ErrorCode::kMalformed, "the field " + key_ + " is there twice", where_, "");
    return &(parent[key_] = std::move(value));
  }
  uint32_t store(const std::string& text) {
    if (definition_.arena.size() + text.size() > kArenaLimit) {
      throw Error(ErrorCode::kLimit, "the vocabulary has more than 1 GiB", where_ + ": model", "");
    }
    definition_.arena += text;
    return static_cast<uint32_t>(definition_.arena.size() - text.size());
  }
  bool token_text(const std::string& text) {
    const auto id = static_cast<int32_t>(definition_.tokens.size());
    definition_.tokens.push_back({store(text), static_cast<uint32_t>(text.size()), id});
    return true;
  }
  bool merge_text(const std::string& text) {
    const auto length = static_cast<uint32_t>(text.size());
    if (inner_ == 1) {
      definition_.merges.push_back({store(text), length, 0});
      inner_ = 2;
    } else if (inner_ == 2) {
      store(text);
      definition_.merges.back().right_length = length;
      inner_ = 3;
    } else {
      const size_t space = text.find(' ');
      if (inner_ != 0 || space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        bad_vocabulary();
      }
      const uint32_t begin = store(text.substr(0, space) + text.substr(space + 1));
      definition_.merges.push_back({begin, static_cast<uint32_t>(space), length - static_cast<uint32_t>(space) - 1});
    }
    return true;
  }
  bool number(json value, double score, int64_t id) {
    if (section_ == Section::kNone) return place(std::move(value));
    if (section_ == Section::kMerges) bad_vocabulary();
    if (definition_.vocabulary_is_list) {
      if (inner_ != 2) bad_vocabulary();
      definition_.scores.push_back(score);
      inner_ = 3;
    } else {
      if (id < 0 || id > INT32_MAX) bad_vocabulary();
      definition_.tokens.back().id = static_cast<int32_t>(id);
    }
    return true;
  }

  Definition& definition_;
  std::string where_;
  std::vector<json*> stack_;  // the objects and lists of `rest` that are open
  std::string key_;
  Section section_ = Section::kNone;
  int inner_ = 0;  // within a list in a section: 1 + how many of its two elements were read
  size_t depth_ = 0, values_ = 0;
  bool in_model_ = false;
};

}  // namespace

Definition read_definition(std::istream& in, const std::string& where) {
  Definition definition;
  Reader reader(&definition, where);
  json::sax_parse(in, &reader);
  definition.arena.shrink_to_fit();
  return definition;
}

}  // namespace awq2trt
