// Text in and out for programs in C, and for Python's tests. No exception leaves a function. Those that may fail return
// 0, or a code of awq2trt.hpp; then awq2trt_text_last_error() describes the error on this thread until the next call.
// Results belong to the caller, who frees them with awq2trt_text_free.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define AWQ2TRT_TEXT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct awq2trt_text_tokenizer awq2trt_text_tokenizer;
typedef struct awq2trt_text_stream awq2trt_text_stream;
typedef struct awq2trt_text_template awq2trt_text_template;

AWQ2TRT_TEXT_API const char* awq2trt_text_last_error(void);
AWQ2TRT_TEXT_API void awq2trt_text_free(void* result);

AWQ2TRT_TEXT_API int32_t awq2trt_text_tokenizer_open(const char* directory, awq2trt_text_tokenizer** tokenizer);
AWQ2TRT_TEXT_API void awq2trt_text_tokenizer_close(awq2trt_text_tokenizer* tokenizer);
AWQ2TRT_TEXT_API int32_t awq2trt_text_tokenizer_size(const awq2trt_text_tokenizer* tokenizer);
AWQ2TRT_TEXT_API int32_t awq2trt_text_token_id(const awq2trt_text_tokenizer* tokenizer, const char* token);

AWQ2TRT_TEXT_API int32_t awq2trt_text_encode(const awq2trt_text_tokenizer* tokenizer, const char* text, size_t bytes,
                                             int32_t allow_special, int32_t add_special_tokens, int32_t** ids,
                                             size_t* count);
// Parts of a text: `trusted[i]` says whether special tokens count in part i.
AWQ2TRT_TEXT_API int32_t awq2trt_text_encode_parts(const awq2trt_text_tokenizer* tokenizer, const char* const* texts,
                                                   const size_t* bytes, const int32_t* trusted, size_t parts,
                                                   int32_t add_special_tokens, int32_t** ids, size_t* count);
AWQ2TRT_TEXT_API int32_t awq2trt_text_decode(const awq2trt_text_tokenizer* tokenizer, const int32_t* ids, size_t count,
                                             int32_t skip_special, char** text, size_t* bytes);

// The tokenizer outlives the stream.
AWQ2TRT_TEXT_API int32_t awq2trt_text_stream_open(const awq2trt_text_tokenizer* tokenizer, int32_t skip_special,
                                                  awq2trt_text_stream** stream);
AWQ2TRT_TEXT_API void awq2trt_text_stream_close(awq2trt_text_stream* stream);
AWQ2TRT_TEXT_API int32_t awq2trt_text_stream_push(awq2trt_text_stream* stream, int32_t id, char** text, size_t* bytes);
AWQ2TRT_TEXT_API int32_t awq2trt_text_stream_finish(awq2trt_text_stream* stream, char** text, size_t* bytes);

// A chat template: from a directory's files, or from its text. `bos` and `eos` may be null.
AWQ2TRT_TEXT_API int32_t awq2trt_text_template_open(const char* directory, awq2trt_text_template** chat_template);
AWQ2TRT_TEXT_API int32_t awq2trt_text_template_parse(const char* source, const char* bos, const char* eos,
                                                     awq2trt_text_template** chat_template);
AWQ2TRT_TEXT_API void awq2trt_text_template_close(awq2trt_text_template* chat_template);
// `messages`: a JSON list of objects with role and content. `now`: seconds since 1970, for strftime_now. `tokenizer`
// says which texts are special tokens, and may be null if the result will not be encoded. `parts` is a JSON list of
// pairs: text, and whether it is trusted.
AWQ2TRT_TEXT_API int32_t awq2trt_text_template_render(const awq2trt_text_template* chat_template,
                                                      const awq2trt_text_tokenizer* tokenizer, const char* messages,
                                                      int32_t add_generation_prompt, int64_t now, char** parts,
                                                      size_t* bytes);

#ifdef __cplusplus
}
#endif
