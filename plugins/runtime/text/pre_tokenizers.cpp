// Each pre-tokenizer of tokenizer.json; see pre_tokenizers.h.
#include "text/pre_tokenizers.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"
#include "text/byte_level.h"
#include "text/json_fields.h"
#include "text/replacement.h"
#include "text/splitting.h"
#include "text/unicode.h"

namespace awq2trt {

Words::Words(std::string_view text, bool at_start) : text_(text), at_start_(at_start) {
  if (!text.empty()) spans_.push_back({0, text.size()});
}

void Words::set_spans(std::vector<Span> spans, bool at_start) {
  spans_ = std::move(spans);
  at_start_ = at_start;
}

void Words::set_text(std::string text, std::vector<Span> spans) {
  storage_ = std::move(text);
  text_ = storage_;
  spans_ = std::move(spans);
}

namespace {

// Splits by matches of a regular expression.
class Split : public PreTokenizer {
 public:
  Split(Regex regex, Behavior behavior, bool invert) : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

  void apply_(Words* words) const override {
    std::vector<Span> result;
    result.reserve(words->text().size() / 4 + words->spans().size());
    Splitter splitter(behavior_, &result);
    for (size_t i = 0; i < words->spans().size(); ++i) {
      const Span word = words->spans()[i];
      Regex::Matches matches(regex_, (*words)[i]);
      size_t done = 0;
      splitter.begin();
      for (Span match; matches.next(&match);) {
        if (match.begin > done) splitter.add({word.begin + done, word.begin + match.begin}, invert_);
        splitter.add({word.begin + match.begin, word.begin + match.end}, !invert_);
        done = match.end;
      }
      if (done < word.size()) splitter.add({word.begin + done, word.end}, invert_);
      splitter.end();
    }
    words->set_spans(std::move(result), words->at_start() && !splitter.dropped_first());
  }

 private:
  Regex regex_;
  Behavior behavior_;
  bool invert_;
};

// Splits by characters of a class; each character in it is a match.
class SplitByClass : public PreTokenizer {
 public:
  using Class = bool (*)(char32_t);
  SplitByClass(Class is_match, Behavior behavior) : is_match_(is_match), behavior_(behavior) {}

  void apply_(Words* words) const override {
    std::vector<Span> result;
    Splitter splitter(behavior_, &result);
    for (const Span word : words->spans()) {
      splitter.begin();
      size_t rest = word.begin;
      for (size_t i = word.begin; i < word.end;) {
        const size_t begin = i;
        if (!is_match_(next_character(words->text(), &i))) continue;
        if (begin > rest) splitter.add({rest, begin}, false);
        splitter.add({begin, i}, true);
        rest = i;
      }
      if (word.end > rest) splitter.add({rest, word.end}, false);
      splitter.end();
    }
    words->set_spans(std::move(result), words->at_start() && !splitter.dropped_first());
  }

 private:
  Class is_match_;
  Behavior behavior_;
};

// Rewrites each word by `rewrite(word, is_first, &text)`, which appends the new one.
template <typename Rewrite>
void rewrite_words(Words* words, Rewrite rewrite) {
  std::string text;
  std::vector<Span> spans;
  text.reserve(words->text().size() + words->spans().size());
  spans.reserve(words->spans().size());
  for (size_t i = 0; i < words->spans().size(); ++i) {
    const size_t begin = text.size();
    rewrite((*words)[i], i == 0, &text);
    spans.push_back({begin, text.size()});
  }
  words->set_text(std::move(text), std::move(spans));
}

class PrependSpace : public PreTokenizer {
 public:
  void apply_(Words* words) const override {
    rewrite_words(words, [](std::string_view word, bool, std::string* text) {
      if (word.front() != ' ') *text += ' ';
      *text += word;
    });
  }
};

class ToByteCharacters : public PreTokenizer {
 public:
  void apply_(Words* words) const override {
    rewrite_words(words,
                  [](std::string_view word, bool, std::string* text) { *text += byte_level::to_characters(word); });
  }
};

enum class PrependScheme { kAlways, kFirst, kNever };

class Metaspace : public PreTokenizer {
 public:
  Metaspace(std::string mark, PrependScheme scheme, bool split)
      : mark_(std::move(mark)), scheme_(scheme), split_(split) {}

  void apply_(Words* words) const override {
    rewrite_words(words, [&](std::string_view word, bool is_first, std::string* text) {
      const bool prepend =
          scheme_ == PrependScheme::kAlways || (scheme_ == PrependScheme::kFirst && is_first && words->at_start());
      if (prepend && word.front() != ' ' && word.substr(0, mark_.size()) != mark_) *text += mark_;
      for (size_t begin = 0; begin <= word.size();) {
        const size_t space = std::min(word.find(' ', begin), word.size());
        text->append(word, begin, space - begin);
        if (space < word.size()) *text += mark_;
        begin = space + 1;
      }
    });
    if (split_) split_at_marks(words);
  }

 private:
  // Every mark begins a word, even each of several in a row.
  void split_at_marks(Words* words) const {
    std::vector<Span> spans;
    spans.reserve(words->text().size() / 4);
    for (const Span word : words->spans()) {
      size_t begin = word.begin;
      while (begin < word.end) {
        const size_t end = std::min(words->text().find(mark_, begin + 1), word.end);
        spans.push_back({begin, end});
        begin = end;
      }
    }
    words->set_spans(std::move(spans), words->at_start());
  }

  std::string mark_;
  PrependScheme scheme_;
  bool split_;
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void apply_(Words* words) const override {
    for (const auto& part : parts_) part->apply_(words);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

using Steps = std::vector<std::unique_ptr<PreTokenizer>>;

void add_byte_level(Fields* fields, bool is_last, Steps* steps) {
  fields->ignore("trim_offsets");
  if (fields->flag("add_prefix_space")) steps->push_back(std::make_unique<PrependSpace>());
  if (fields->flag_or("use_regex", true)) {
    steps->push_back(std::make_unique<Split>(Regex(byte_level::kPattern, fields->where()), Behavior::kIsolated, false));
  }
  if (!is_last) steps->push_back(std::make_unique<ToByteCharacters>());
}

void add_metaspace(Fields* fields, Steps* steps) {
  const std::string mark = fields->text_or("replacement", "\u2581");
  if (count_characters(mark) != 1) {
    throw Error(ErrorCode::kMalformed, "one character is expected, not " + mark, fields->place("replacement"), "");
  }
  // Files written before prepend_scheme have add_prefix_space.
  const bool prefix = fields->flag_or("add_prefix_space", true);
  const std::string name = fields->text_or("prepend_scheme", prefix ? "always" : "never");
  fields->ignore("str_rep");
  PrependScheme scheme = PrependScheme::kAlways;
  if (name == "first") {
    scheme = PrependScheme::kFirst;
  } else if (name == "never") {
    scheme = PrependScheme::kNever;
  } else if (name != "always") {
    refuse_unknown("the prepend_scheme " + name, fields->where());
  }
  steps->push_back(std::make_unique<Metaspace>(mark, scheme, fields->flag_or("split", true)));
}

// Appends the steps of one pre-tokenizer; `is_last` says that no other follows it.
void add_steps(const nlohmann::json& definition, const std::string& where, bool is_last, bool* raw_bytes,
               Steps* steps) {
  Fields fields(definition, where);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    const nlohmann::json& list = fields.need("pretokenizers");
    if (!list.is_array()) throw Error(ErrorCode::kMalformed, "a list is expected", fields.place("pretokenizers"), "");
    for (size_t i = 0; i < list.size(); ++i) {
      add_steps(list[i], where + ".pretokenizers[" + std::to_string(i) + "]", is_last && i + 1 == list.size(),
                raw_bytes, steps);
    }
  } else if (type == "ByteLevel") {
    add_byte_level(&fields, is_last, steps);
    *raw_bytes = is_last;
  } else if (type == "Metaspace") {
    add_metaspace(&fields, steps);
  } else if (type == "Split") {
    const Pattern pattern = read_pattern(fields.need("pattern"), fields.place("pattern"));
    const Behavior behavior = read_behavior(fields.text("behavior"), where);
    const std::string place = fields.place("pattern");
    Regex regex = pattern.is_regex ? Regex(pattern.text, place) : Regex::of_literal(pattern.text, place);
    steps->push_back(std::make_unique<Split>(std::move(regex), behavior, fields.flag("invert")));
  } else if (type == "Digits") {
    const bool each = fields.flag_or("individual_digits", false);
    steps->push_back(std::make_unique<SplitByClass>(is_number, each ? Behavior::kIsolated : Behavior::kContiguous));
  } else if (type == "Punctuation") {
    const Behavior behavior = read_behavior(fields.text_or("behavior", "Isolated"), where);
    steps->push_back(std::make_unique<SplitByClass>(is_punctuation, behavior));
  } else if (type == "Whitespace") {
    steps->push_back(std::make_unique<Split>(Regex(R"(\w+|[^\w\s]+)", where), Behavior::kRemoved, true));
  } else if (type == "WhitespaceSplit") {
    steps->push_back(std::make_unique<SplitByClass>(is_space, Behavior::kRemoved));
  } else {
    refuse_unknown("the pre-tokenizer " + type, where);
  }
  fields.finish();
}

}  // namespace

PreTokenizerPlan make_pre_tokenizer(const nlohmann::json& definition, const std::string& where) {
  PreTokenizerPlan plan;
  if (definition.is_null()) return plan;
  Steps steps;
  add_steps(definition, where, true, &plan.raw_bytes, &steps);
  plan.steps = std::make_unique<Sequence>(std::move(steps));
  return plan;
}

}  // namespace awq2trt
