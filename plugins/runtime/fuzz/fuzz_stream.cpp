// In: bytes; the first chooses a tokenizer, the others are ids of two bytes each. Each piece of the stream must
// consist of complete characters, and all pieces together must equal the text that decoding all ids at once gives.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "text/byte_level.h"
#include "text/stream.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

using nlohmann::json;

// Tokens of one byte, of two, and some text.
std::unique_ptr<awq2trt::Tokenizer> make(const json& decoder, bool byte_level) {
  json vocabulary = json::object();
  const auto add = [&](const std::string& token) { vocabulary.emplace(token, vocabulary.size()); };
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    const std::string bytes(1, static_cast<char>(byte));
    add(byte_level ? awq2trt::byte_level::to_characters(bytes) : name);
  }
  for (const char* pair : {"\xE4\xBD", "\xF0\x9F", "\x98\x80", "\xED\xA0", "\xC0\x80", " a"}) {
    if (byte_level) add(awq2trt::byte_level::to_characters(pair));
  }
  for (const char* text : {"\u2581", "\u2581\u2581", "\u2581Hello", "a\u2581", " ", "  x ", "\u4f60", "<s>"}) add(text);
  json definition = {{"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}},
                     {"decoder", decoder}};
  if (byte_level) {
    definition["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}};
  }
  std::istringstream in(definition.dump());
  return awq2trt::Tokenizer::from_stream(in, "tokenizer.json");
}

const std::vector<std::unique_ptr<awq2trt::Tokenizer>>& tokenizers() {
  static const auto made = [] {
    const json replace = {{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}};
    const json fallback = {{"type", "ByteFallback"}}, fuse = {{"type", "Fuse"}}, bytes = {{"type", "ByteLevel"}};
    const json strip = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 2}};
    const json space = {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}};
    const auto sequence = [](std::vector<json> steps) { return json{{"type", "Sequence"}, {"decoders", steps}}; };
    std::vector<std::unique_ptr<awq2trt::Tokenizer>> list;
    list.push_back(make(bytes, true));
    list.push_back(make(sequence({replace, fallback, fuse, strip}), false));
    list.push_back(make(sequence({fallback, space}), false));
    list.push_back(make(sequence({fuse, replace, fallback}), false));
    list.push_back(make(sequence({strip, fallback, fuse, space, strip}), false));
    list.push_back(make(nullptr, true));
    return list;
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const awq2trt::Tokenizer& tokenizer = *tokenizers()[data[0] % tokenizers().size()];
  std::vector<int32_t> ids;
  for (size_t i = 1; i + 1 < size; i += 2) ids.push_back((data[i] | data[i + 1] << 8) % 300);
  awq2trt::StreamDecoder stream(tokenizer, false);
  std::string text;
  const auto add = [&](const std::string& piece) {
    if (awq2trt::find_ill_formed(piece) != std::string::npos) std::abort();
    text += piece;
  };
  for (const int32_t id : ids) add(stream.push(id));
  add(stream.finish());
  if (text != tokenizer.decode(ids, false)) std::abort();
  return 0;
}
