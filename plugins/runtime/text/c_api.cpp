// The C interface; see c_api.h.
#include "text/c_api.h"

#include <cstdlib>

#include "library/c_calls.h"
#include "text/chat_template.h"
#include "text/stream.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

struct awq2trt_text_tokenizer {
  std::unique_ptr<awq2trt::Tokenizer> tokenizer;
};
struct awq2trt_text_stream {
  awq2trt::StreamDecoder decoder;
};
struct awq2trt_text_template {
  std::unique_ptr<awq2trt::ChatTemplate> chat_template;
};

namespace {

using awq2trt::c_calls::give;
using awq2trt::c_calls::guarded;
using awq2trt::c_calls::require;

}  // namespace

const char* awq2trt_text_last_error(void) { return awq2trt::c_calls::last_error; }
void awq2trt_text_free(void* result) { std::free(result); }

int32_t awq2trt_text_tokenizer_open(const char* directory, awq2trt_text_tokenizer** tokenizer) {
  return guarded([&] {
    require(directory != nullptr && tokenizer != nullptr);
    *tokenizer = new awq2trt_text_tokenizer{awq2trt::Tokenizer::from_directory(directory)};
  });
}

void awq2trt_text_tokenizer_close(awq2trt_text_tokenizer* tokenizer) { delete tokenizer; }

int32_t awq2trt_text_tokenizer_size(const awq2trt_text_tokenizer* tokenizer) {
  return tokenizer == nullptr ? 0 : tokenizer->tokenizer->size();
}

int32_t awq2trt_text_token_id(const awq2trt_text_tokenizer* tokenizer, const char* token) {
  int32_t id = -1;
  guarded([&] {
    require(tokenizer != nullptr && token != nullptr);
    awq2trt::require_utf8(token, "the token");
    id = tokenizer->tokenizer->find(token);
  });
  return id;
}

int32_t awq2trt_text_encode(const awq2trt_text_tokenizer* tokenizer, const char* text, size_t bytes,
                            int32_t allow_special, int32_t add_special_tokens, int32_t** ids, size_t* count) {
  return guarded([&] {
    require(tokenizer != nullptr && (text != nullptr || bytes == 0) && ids != nullptr && count != nullptr);
    const awq2trt::EncodeOptions options{allow_special != 0, add_special_tokens != 0};
    give(tokenizer->tokenizer->encode(std::string_view(text, bytes), options), ids, count);
  });
}

int32_t awq2trt_text_encode_parts(const awq2trt_text_tokenizer* tokenizer, const char* const* texts,
                                  const size_t* bytes, const int32_t* trusted, size_t parts, int32_t add_special_tokens,
                                  int32_t** ids, size_t* count) {
  return guarded([&] {
    require(tokenizer != nullptr && texts != nullptr && bytes != nullptr && trusted != nullptr && ids != nullptr &&
            count != nullptr);
    std::vector<awq2trt::TextPart> list;
    for (size_t i = 0; i < parts; ++i) list.push_back({std::string_view(texts[i], bytes[i]), trusted[i] != 0});
    give(tokenizer->tokenizer->encode(list, add_special_tokens != 0), ids, count);
  });
}

int32_t awq2trt_text_decode(const awq2trt_text_tokenizer* tokenizer, const int32_t* ids, size_t count,
                            int32_t skip_special, char** text, size_t* bytes) {
  return guarded([&] {
    require(tokenizer != nullptr && (ids != nullptr || count == 0) && text != nullptr && bytes != nullptr);
    give(tokenizer->tokenizer->decode(std::vector<int32_t>(ids, ids + count), skip_special != 0), text, bytes);
  });
}

int32_t awq2trt_text_stream_open(const awq2trt_text_tokenizer* tokenizer, int32_t skip_special,
                                 awq2trt_text_stream** stream) {
  return guarded([&] {
    require(tokenizer != nullptr && stream != nullptr);
    *stream = new awq2trt_text_stream{awq2trt::StreamDecoder(*tokenizer->tokenizer, skip_special != 0)};
  });
}

void awq2trt_text_stream_close(awq2trt_text_stream* stream) { delete stream; }

int32_t awq2trt_text_stream_push(awq2trt_text_stream* stream, int32_t id, char** text, size_t* bytes) {
  return guarded([&] {
    require(stream != nullptr && text != nullptr && bytes != nullptr);
    give(stream->decoder.push(id), text, bytes);
  });
}

int32_t awq2trt_text_stream_finish(awq2trt_text_stream* stream, char** text, size_t* bytes) {
  return guarded([&] {
    require(stream != nullptr && text != nullptr && bytes != nullptr);
    give(stream->decoder.finish(), text, bytes);
  });
}

int32_t awq2trt_text_template_open(const char* directory, awq2trt_text_template** chat_template) {
  return guarded([&] {
    require(directory != nullptr && chat_template != nullptr);
    *chat_template = new awq2trt_text_template{awq2trt::ChatTemplate::from_directory(directory)};
  });
}

int32_t awq2trt_text_template_parse(const char* source, const char* bos, const char* eos,
                                    awq2trt_text_template** chat_template) {
  return guarded([&] {
    require(source != nullptr && chat_template != nullptr);
    nlohmann::ordered_json variables = nlohmann::ordered_json::object();
    if (bos != nullptr) variables["bos_token"] = bos;
    if (eos != nullptr) variables["eos_token"] = eos;
    *chat_template =
        new awq2trt_text_template{std::make_unique<awq2trt::ChatTemplate>(source, variables, "chat template")};
  });
}

void awq2trt_text_template_close(awq2trt_text_template* chat_template) { delete chat_template; }

int32_t awq2trt_text_template_render(const awq2trt_text_template* chat_template,
                                     const awq2trt_text_tokenizer* tokenizer, const char* messages,
                                     int32_t add_generation_prompt, int64_t now, char** parts, size_t* bytes) {
  return guarded([&] {
    require(chat_template != nullptr && messages != nullptr && parts != nullptr && bytes != nullptr);
    const awq2trt::RenderOptions options{add_generation_prompt != 0, static_cast<std::time_t>(now)};
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const awq2trt::RenderedPart& part : chat_template->chat_template->render(
             awq2trt::read_messages(messages), tokenizer == nullptr ? nullptr : tokenizer->tokenizer.get(), options)) {
      list.push_back({part.text, part.trusted});
    }
    give(list.dump(), parts, bytes);
  });
}
