// Each decoder of tokenizer.json; see decoders.h.
#include "text/decoders.h"

#include <functional>
#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"
#include "text/byte_level.h"
#include "text/json_fields.h"
#include "text/replacement.h"
#include "text/unicode.h"

namespace awq2trt {
namespace {

// Steps that look at whole tokens. A token that comes in parts is collected.
class WholeTokens : public DecodingStep {
 public:
  void take(std::string_view part, bool is_last) final {
    if (!is_last || !collected_.empty()) {
      collected_ += part;
      if (!is_last) return;
      std::string whole;
      whole.swap(collected_);
      token(whole);
    } else {
      token(part);
    }
  }

 protected:
  virtual void token(std::string_view token) = 0;

 private:
  std::string collected_;
};

// Joins the bytes of all tokens and passes on their characters; ill-formed bytes become U+FFFD.
class JoinBytes : public WholeTokens {
 public:
  explicit JoinBytes(bool raw) : raw_(raw) {}

  void finish() override {
    write(true);
    hand_on("", true);
    finish_next();
  }

 protected:
  void token(std::string_view token) override {
    std::string bytes;
    if (!raw_ && byte_level::to_bytes(token, &bytes)) {
      pending_ += bytes;
    } else {
      pending_ += token;
    }
    write(false);
  }

 private:
  void write(bool is_end) {
    std::string text;
    size_t i = 0;
    while (i < pending_.size()) {
      const std::string_view rest = std::string_view(pending_).substr(i);
      const int length = character_length(rest);
      if (length > 0) {
        text.append(rest, 0, static_cast<size_t>(length));
        i += static_cast<size_t>(length);
      } else if (length < 0 && !is_end) {
        break;
      } else {
        text += kReplacementCharacter;
        i += ill_formed_length(rest);
      }
    }
    pending_.erase(0, i);
    if (!text.empty()) hand_on(text, false);
  }

  bool raw_;
  std::string pending_;
};

// Tokens <0xHH> in a row are the bytes of characters. They wait for the row's end: if it is ill-formed, each of its
// tokens is U+FFFD, well-formed beginnings included.
class ByteFallback : public WholeTokens {
 public:
  void finish() override {
    write();
    finish_next();
  }

 protected:
  void token(std::string_view token) override {
    const int high = token.size() == 6 && token.substr(0, 3) == "<0x" && token[5] == '>' ? digit(token[3]) : -1;
    const int low = high >= 0 ? digit(token[4]) : -1;
    if (low >= 0) {
      bytes_ += static_cast<char>(high << 4 | low);
      return;
    }
    write();
    hand_on(token, true);
  }

 private:
  static int digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  }
  void write() {
    if (bytes_.empty()) return;
    if (find_ill_formed(bytes_) == std::string_view::npos) {
      hand_on(bytes_, true);
    } else {
      for (size_t i = 0; i < bytes_.size(); ++i) hand_on(kReplacementCharacter, true);
    }
    bytes_.clear();
  }

  std::string bytes_;
};

class Fuse : public DecodingStep {
 public:
  void take(std::string_view part, bool) override { hand_on(part, false); }
  void finish() override {
    hand_on("", true);
    finish_next();
  }
};

// The mark of a space becomes a space, except the first token's, which nobody wrote.
class Metaspace : public DecodingStep {
 public:
  Metaspace(std::string mark, bool drops_first) : mark_(std::move(mark)), dropping_(drops_first) {}

  void take(std::string_view part, bool is_last) override {
    std::string text;
    for (size_t i = 0; i < part.size();) {
      if (part.substr(i, mark_.size()) == mark_) {
        if (!dropping_) text += ' ';
        i += mark_.size();
      } else {
        text += part[i++];
      }
    }
    if (is_last) dropping_ = false;
    hand_on(text, is_last);
  }
  void finish() override { finish_next(); }

 private:
  std::string mark_;
  bool dropping_;
};

class Replace : public WholeTokens {
 public:
  explicit Replace(const Replacement& replacement) : replacement_(replacement) {}
  void finish() override { finish_next(); }

 protected:
  void token(std::string_view token) override {
    std::string text(token);
    replacement_.apply_(&text);
    hand_on(text, true);
  }

 private:
  const Replacement& replacement_;
};

// Removes up to a number of equal characters from the beginning and the end of each token.
class Strip : public DecodingStep {
 public:
  Strip(std::string character, size_t start, size_t stop)
      : character_(std::move(character)), start_(start), stop_(stop), to_strip_(start) {}

  void take(std::string_view part, bool is_last) override {
    while (to_strip_ > 0 && !part.empty()) {
      if (part.substr(0, character_.size()) != character_) {
        to_strip_ = 0;
      } else {
        part.remove_prefix(character_.size());
        --to_strip_;
      }
    }
    held_ += part;
    // Text that may turn out to be the end is held back.
    size_t end = held_.size(), strippable = 0;
    while (strippable < stop_ && end >= character_.size() &&
           held_.compare(end - character_.size(), character_.size(), character_) == 0) {
      end -= character_.size();
      ++strippable;
    }
    const std::string text = held_.substr(0, end);
    if (is_last) {
      held_.clear();
      to_strip_ = start_;
    } else {
      held_.erase(0, end);
    }
    hand_on(text, is_last);
  }
  void finish() override { finish_next(); }

 private:
  std::string character_;
  size_t start_, stop_, to_strip_;
  std::string held_;
};

// No decoder: tokens with spaces between them.
class JoinWithSpaces : public DecodingStep {
 public:
  void take(std::string_view part, bool is_last) override {
    if (!first_ && new_token_) hand_on(" ", false);
    first_ = false;
    new_token_ = is_last;
    hand_on(part, is_last);
  }
  void finish() override { finish_next(); }

 private:
  bool first_ = true, new_token_ = true;
};

class Made : public Decoder {
 public:
  using Begin = std::function<std::unique_ptr<DecodingStep>()>;
  explicit Made(Begin begin) : begin_(std::move(begin)) {}
  std::unique_ptr<DecodingStep> begin() const override { return begin_(); }

 private:
  Begin begin_;
};

template <typename Step, typename... Arguments>
std::unique_ptr<Decoder> made(const Arguments&... arguments) {
  return std::make_unique<Made>([=] { return std::make_unique<Step>(arguments...); });
}

class MadeReplace : public Decoder {
 public:
  explicit MadeReplace(Replacement replacement) : replacement_(std::move(replacement)) {}
  std::unique_ptr<DecodingStep> begin() const override { return std::make_unique<Replace>(replacement_); }

 private:
  Replacement replacement_;
};

std::string one_character(Fields* fields, const std::string& key, const std::string& otherwise) {
  std::string text = fields->text_or(key, otherwise);
  if (count_characters(text) != 1) {
    throw Error(ErrorCode::kMalformed, "one character is expected, not " + text, fields->place(key), "");
  }
  return text;
}

size_t count_of(Fields* fields, const std::string& key) {
  const int64_t count = fields->number(key);
  if (count < 0) throw Error(ErrorCode::kMalformed, "a number from 0 is expected", fields->place(key), "");
  return static_cast<size_t>(count);
}

void add_decoders(const nlohmann::json& definition, const std::string& where, bool raw_vocabulary, DecoderPlan* plan) {
  Fields fields(definition, where);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    const nlohmann::json& list = fields.need("decoders");
    if (!list.is_array()) throw Error(ErrorCode::kMalformed, "a list is expected", fields.place("decoders"), "");
    for (size_t i = 0; i < list.size(); ++i) {
      add_decoders(list[i], where + ".decoders[" + std::to_string(i) + "]", raw_vocabulary, plan);
    }
  } else if (type == "ByteLevel") {
    for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"}) fields.ignore(key);
    const bool takes_bytes = raw_vocabulary && plan->chain.empty();
    plan->takes_bytes = plan->takes_bytes || takes_bytes;
    plan->chain.push_back(made<JoinBytes>(takes_bytes));
  } else if (type == "ByteFallback") {
    plan->chain.push_back(made<ByteFallback>());
  } else if (type == "Fuse") {
    plan->chain.push_back(made<Fuse>());
  } else if (type == "Metaspace") {
    const bool prefix = fields.flag_or("add_prefix_space", true);
    const bool drops = fields.text_or("prepend_scheme", prefix ? "always" : "never") != "never";
    fields.ignore("split");
    fields.ignore("str_rep");
    plan->chain.push_back(made<Metaspace>(one_character(&fields, "replacement", "\u2581"), drops));
  } else if (type == "Replace") {
    const std::string content = fields.text("content");
    Replacement replacement(fields.need("pattern"), content, fields.place("pattern"));
    plan->chain.push_back(std::make_unique<MadeReplace>(std::move(replacement)));
  } else if (type == "Strip") {
    const std::string character = one_character(&fields, "content", " ");
    const size_t start = count_of(&fields, "start");
    plan->chain.push_back(made<Strip>(character, start, count_of(&fields, "stop")));
  } else {
    refuse_unknown("the decoder " + type, where);
  }
  fields.finish();
}

}  // namespace

DecoderPlan make_decoders(const nlohmann::json& definition, const std::string& where, bool raw_vocabulary) {
  DecoderPlan plan;
  if (definition.is_null()) {
    plan.chain.push_back(made<JoinWithSpaces>());
  } else {
    add_decoders(definition, where, raw_vocabulary, &plan);
  }
  return plan;
}

}  // namespace awq2trt
