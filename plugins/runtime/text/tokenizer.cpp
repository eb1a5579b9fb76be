// A complete tokenizer.json; see tokenizer.h.
#include "text/tokenizer.h"

#include <fstream>

#include "awq2trt/awq2trt.hpp"
#include "text/definition.h"
#include "text/json_fields.h"
#include "text/stream.h"
#include "text/unicode.h"

namespace awq2trt {
namespace {

constexpr char kFile[] = "tokenizer.json";
constexpr size_t kIdleScratches = 4;              // more threads than that at once are rare
constexpr size_t kLongestText = size_t{1} << 28;  // bytes encoded at once: positions have 32 bits

enum class ModelKind { kBpe, kUnigram };

ModelKind kind_of(const Definition& definition, const std::string& where) {
  const auto& rest = definition.rest;
  if (!rest.is_object() || !rest.contains("model")) {
    throw Error(ErrorCode::kMalformed, "there is no model in it", where, "copy the model's tokenizer.json again.");
  }
  Fields fields(rest.at("model"), where + ": model");
  // Files of the first versions have no type.
  const std::string type = fields.text_or("type", definition.has_merges ? "BPE" : "Unigram");
  if (type != "BPE" && type != "Unigram") refuse_unknown("the model " + type, where + ": model");
  const bool bpe = type == "BPE";
  if (!definition.has_vocabulary || definition.vocabulary_is_list == bpe || definition.has_merges != bpe) {
    throw Error(ErrorCode::kMalformed, "vocabulary and merges are not those of a " + type + " model", where + ": model",
                "copy the model's tokenizer.json again.");
  }
  return bpe ? ModelKind::kBpe : ModelKind::kUnigram;
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_directory(const std::string& directory) {
  const std::string path = directory + "/" + kFile;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw Error(ErrorCode::kNotFound, std::string("there is no readable ") + kFile, directory,
                "copy the model's tokenizer.json there.");
  }
  return from_stream(file, path);
}

std::unique_ptr<Tokenizer> Tokenizer::from_stream(std::istream& in, const std::string& where) {
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  tokenizer->read(in, where);
  return tokenizer;
}

void Tokenizer::read(std::istream& in, const std::string& where) {
  Definition definition = read_definition(in, where);
  const ModelKind kind = kind_of(definition, where);
  Fields fields(definition.rest, where);
  fields.ignore("version");
  fields.ignore("model");
  // The caller decides how long a text may be; transformers also sets these two for each call.
  fields.ignore("truncation");
  fields.ignore("padding");
  const nlohmann::json nothing;
  const auto part = [&](const char* key) -> const nlohmann::json& {
    const nlohmann::json* found = fields.find(key);
    return found == nullptr ? nothing : *found;
  };
  normalizer_ = make_normalizer(part("normalizer"), where + ": normalizer");
  pre_tokenizer_ = make_pre_tokenizer(part("pre_tokenizer"), where + ": pre_tokenizer");
  frame_ = read_post_processor(part("post_processor"), where + ": post_processor");
  const nlohmann::json* added = fields.find("added_tokens");
  if (added != nullptr) {
    added_ = AddedTokens(read_added_tokens(*added, where + ": added_tokens"), normalizer_.get());
  }
  const bool raw = pre_tokenizer_.raw_bytes;
  if (raw && kind == ModelKind::kUnigram) {
    refuse_unknown("a Unigram model behind the pre-tokenizer ByteLevel", where + ": pre_tokenizer");
  }
  read_vocabulary(definition, raw, where);
  decoders_ = make_decoders(part("decoder"), where + ": decoder", raw);
  fields.finish();
  added_.resize_special(static_cast<size_t>(vocabulary_.size()));
  const auto make = kind == ModelKind::kBpe ? make_bpe : make_unigram;
  model_ = make(&definition, vocabulary_, added_.special(), where);
}

void Tokenizer::read_vocabulary(const Definition& definition, bool raw, const std::string& where) {
  std::vector<Vocabulary::Entry> entries;
  entries.reserve(definition.tokens.size() + added_.tokens().size());
  for (const Definition::Token& token : definition.tokens) entries.push_back({definition.text(token), token.id});
  // Added tokens may be in the model's vocabulary as well, under the same id.
  std::map<std::string_view, int32_t> missing;
  for (const AddedToken& token : added_.tokens()) missing.emplace(token.content, token.id);
  for (const Definition::Token& token : definition.tokens) {
    const auto found = missing.find(definition.text(token));
    if (found == missing.end()) continue;
    if (found->second != token.id) {
      throw Error(ErrorCode::kMalformed,
                  "the added token " + std::string(found->first) + " has the id " + std::to_string(found->second) +
                      ", and " + std::to_string(token.id) + " in the vocabulary",
                  where, "copy the model's tokenizer.json again.");
    }
    missing.erase(found);
  }
  for (const auto& [content, id] : missing) entries.push_back({content, id});
  vocabulary_.build(entries, raw, where);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  return encode(std::vector<TextPart>{{text, options.allow_special}}, options.add_special_tokens);
}

std::vector<int32_t> Tokenizer::encode(const std::vector<TextPart>& parts, bool add_special_tokens) const {
  std::string joined;
  AddedTokens::Trusted trusted;
  size_t length = 0;
  for (const TextPart& part : parts) {
    require_utf8(part.text, "the text to encode");
    if (part.trusted && !part.text.empty()) {
      if (!trusted.empty() && trusted.back().end == length) {
        trusted.back().end += part.text.size();
      } else {
        trusted.push_back({length, length + part.text.size()});
      }
    }
    length += part.text.size();
    if (parts.size() > 1) joined += part.text;
  }
  const std::string_view text = parts.size() == 1 ? parts[0].text : std::string_view(joined);
  if (text.size() > kLongestText) {
    throw Error(ErrorCode::kLimit,
                "the text has " + std::to_string(text.size()) + " bytes, at most " + std::to_string(kLongestText) +
                    " are encoded at once",
                "the text to encode", "encode it in pieces.");
  }
  const bool all_trusted = trusted.size() == 1 && trusted[0].size() == text.size();

  std::unique_ptr<Scratch> scratch;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      scratch = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (scratch == nullptr) scratch = std::make_unique<Scratch>();

  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_special_tokens) ids = frame_.before;
  for (const Section& section : added_.find_raw(text, trusted, !all_trusted)) {
    if (section.id != Vocabulary::kNone) {
      ids.push_back(section.id);
      continue;
    }
    std::string_view raw = text.substr(section.span.begin, section.span.size());
    std::string normalized;
    if (normalizer_ != nullptr) {
      normalized = raw;
      normalizer_->apply_(&normalized);
      raw = normalized;
    }
    for (const Section& part : added_.find_normalized(raw, all_trusted)) {
      if (part.id != Vocabulary::kNone) {
        ids.push_back(part.id);
      } else {
        const bool at_start = section.span.begin == 0 && part.span.begin == 0;
        encode_words(raw.substr(part.span.begin, part.span.size()), at_start, scratch.get(), &ids);
      }
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), frame_.behind.begin(), frame_.behind.end());
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.size() < kIdleScratches) idle_.push_back(std::move(scratch));
  return ids;
}

void Tokenizer::encode_words(std::string_view text, bool at_start, Scratch* scratch, std::vector<int32_t>* ids) const {
  if (pre_tokenizer_.steps == nullptr) {
    if (!text.empty()) model_->encode(text, scratch, ids);
    return;
  }
  Words words(text, at_start);
  pre_tokenizer_.steps->apply_(&words);
  for (size_t i = 0; i < words.spans().size(); ++i) model_->encode(words[i], scratch, ids);
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  return text + stream.finish();
}

}  // namespace awq2trt
