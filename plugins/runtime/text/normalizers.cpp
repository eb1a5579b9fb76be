// Each normalizer of tokenizer.json; see normalizers.h.
#include "text/normalizers.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "awq2trt/awq2trt.hpp"
#include "text/json_fields.h"
#include "text/precompiled.h"
#include "text/replacement.h"
#include "text/unicode.h"

namespace awq2trt {
namespace {

// The longest text that is normalized. A normalizer may make it a few times longer.
constexpr size_t kLongestText = size_t{1} << 30;

// Unicode's normal forms.
class UnicodeForm : public Normalizer {
 public:
  explicit UnicodeForm(int options) : options_(options) {}

  void apply_(std::string* text) const override {
    const bool ascii = std::all_of(text->begin(), text->end(), [](unsigned char byte) { return byte < 0x80; });
    if (ascii) return;
    utf8proc_uint8_t* normalized = nullptr;
    const utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text->data()),
                                                 static_cast<utf8proc_ssize_t>(text->size()), &normalized,
                                                 static_cast<utf8proc_option_t>(UTF8PROC_STABLE | options_));
    if (length < 0) {
      throw Error(ErrorCode::kInternal, utf8proc_errmsg(length), "Unicode normalization", "");
    }
    text->assign(reinterpret_cast<const char*>(normalized), static_cast<size_t>(length));
    std::free(normalized);
  }

 private:
  int options_;
};

// Changes each character by itself; `kDrop` leaves it out.
class EachCharacter : public Normalizer {
 public:
  using Change = char32_t (*)(char32_t);
  static constexpr char32_t kDrop = 0xFFFFFFFF;

  explicit EachCharacter(Change change) : change_(change) {}

  void apply_(std::string* text) const override {
    std::string result;
    result.reserve(text->size());
    for (size_t i = 0; i < text->size();) {
      const char32_t changed = change_(next_character(*text, &i));
      if (changed != kDrop) append_character(&result, changed);
    }
    *text = std::move(result);
  }

 private:
  Change change_;
};

// One character has a lower case of two characters; its second one is added here.
class Lowercase : public Normalizer {
 public:
  void apply_(std::string* text) const override {
    constexpr char32_t kCapitalIWithDot = 0x130, kDotAbove = 0x307;
    std::string result;
    result.reserve(text->size());
    for (size_t i = 0; i < text->size();) {
      const char32_t character = next_character(*text, &i);
      if (character == kCapitalIWithDot) {
        result += 'i';
        append_character(&result, kDotAbove);
      } else {
        append_character(&result, to_lower(character));
      }
    }
    *text = std::move(result);
  }
};

char32_t without_marks(char32_t character) { return is_mark(character) ? EachCharacter::kDrop : character; }

// Source: nmt_nfkc of SentencePiece, as implemented in do_nmt of Hugging Face's tokenizers.
char32_t as_nmt(char32_t c) {
  if ((c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F) {
    return EachCharacter::kDrop;
  }
  const bool space = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                     c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
  return space ? U' ' : c;
}

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply_(std::string* text) const override {
    if (!text->empty()) text->insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  void apply_(std::string* text) const override {
    size_t begin = 0, end = text->size();
    while (left_ && begin < end) {
      size_t behind = begin;
      if (!is_space(next_character(*text, &behind))) break;
      begin = behind;
    }
    while (right_ && end > begin) {
      size_t before = previous_character(*text, end);
      const size_t last = before;
      if (!is_space(next_character(*text, &before))) break;
      end = last;
    }
    *text = text->substr(begin, end - begin);
  }

 private:
  bool left_, right_;
};

class Replace : public Normalizer {
 public:
  explicit Replace(Replacement replacement) : replacement_(std::move(replacement)) {}
  void apply_(std::string* text) const override { replacement_.apply_(text); }

 private:
  Replacement replacement_;
};

class Precompiled : public Normalizer {
 public:
  explicit Precompiled(PrecompiledTable table) : table_(std::move(table)) {}
  void apply_(std::string* text) const override { table_.apply_(text); }

 private:
  PrecompiledTable table_;
};

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> parts) : parts_(std::move(parts)) {}
  void apply_(std::string* text) const override {
    for (const auto& part : parts_) {
      part->apply_(text);
      if (text->size() > kLongestText) {
        throw Error(ErrorCode::kLimit, "the normalized text has more than 1 GiB", "normalizer", "shorten the text.");
      }
    }
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> parts_;
};

std::unique_ptr<Normalizer> make_simple(const std::string& type, Fields* fields) {
  const int compatible = UTF8PROC_COMPAT, compose = UTF8PROC_COMPOSE, decompose = UTF8PROC_DECOMPOSE;
  if (type == "NFC") return std::make_unique<UnicodeForm>(compose);
  if (type == "NFD") return std::make_unique<UnicodeForm>(decompose);
  if (type == "NFKC") return std::make_unique<UnicodeForm>(compose | compatible);
  if (type == "NFKD") return std::make_unique<UnicodeForm>(decompose | compatible);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "StripAccents") return std::make_unique<EachCharacter>(without_marks);
  if (type == "Nmt") return std::make_unique<EachCharacter>(as_nmt);
  if (type == "Prepend") return std::make_unique<Prepend>(fields->text("prepend"));
  if (type == "Strip") {
    const bool left = fields->flag("strip_left");
    return std::make_unique<Strip>(left, fields->flag("strip_right"));
  }
  if (type == "Replace") {
    const std::string content = fields->text("content");
    return std::make_unique<Replace>(Replacement(fields->need("pattern"), content, fields->place("pattern")));
  }
  if (type == "Precompiled") {
    const std::string where = fields->place("precompiled_charsmap");
    return std::make_unique<Precompiled>(PrecompiledTable(fields->text("precompiled_charsmap"), where));
  }
  refuse_unknown("the normalizer " + type, fields->where());
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& definition, const std::string& where) {
  if (definition.is_null()) return nullptr;
  Fields fields(definition, where);
  const std::string type = fields.text("type");
  std::unique_ptr<Normalizer> made;
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> parts;
    const nlohmann::json& list = fields.need("normalizers");
    if (!list.is_array()) throw Error(ErrorCode::kMalformed, "a list is expected", fields.place("normalizers"), "");
    for (size_t i = 0; i < list.size(); ++i) {
      parts.push_back(make_normalizer(list[i], where + ".normalizers[" + std::to_string(i) + "]"));
      if (parts.back() == nullptr) throw Error(ErrorCode::kMalformed, "a null in the list", where, "");
    }
    made = std::make_unique<Sequence>(std::move(parts));
  } else {
    made = make_simple(type, &fields);
  }
  fields.finish();
  return made;
}

}  // namespace awq2trt
