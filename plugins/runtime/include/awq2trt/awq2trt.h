/* awq2trt for C, and through it for every language that can call C. It offers the same as awq2trt.hpp, which documents
 * the calls. No exception leaves a function, and nothing is printed.
 *
 * Functions that may fail return 0, or a code of enum ErrorCode in awq2trt.hpp; then awq2trt_last_error() says what
 * went wrong on this thread, until its next call. Text is UTF-8 with its length in bytes, and need not end in a zero
 * byte; only paths must. Results belong to the caller, who frees them with awq2trt_free.
 *
 * Structures begin with their size as the caller knows it, sizeof(the structure). Later versions only add fields at the
 * end, and treat fields that an older caller does not know as 0, which always means the default. */
#ifndef AWQ2TRT_H
#define AWQ2TRT_H

#include <stddef.h>
#include <stdint.h>

#ifndef AWQ2TRT_API
#define AWQ2TRT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct awq2trt_model awq2trt_model;
typedef struct awq2trt_session awq2trt_session;

typedef struct awq2trt_load_options {
  size_t size;
  int32_t verify; /* 0: hashes on the first load, 1: only sizes, 2: always hashes */
  int32_t device;
  int32_t threads;
  int32_t no_cuda_graph;
  int32_t trust_directory_library;
  int32_t reserved;                /* 0 */
  const char* onnxruntime_library; /* null or "" for none; the same holds for all paths */
  const char* operators_library;
  void* stream;
  void* (*allocate)(size_t bytes, void* context);
  void (*free)(void* memory, void* context);
  void* allocator_context;
  const char* tensorrt_library;
} awq2trt_load_options;

typedef struct awq2trt_message {
  const char* role;
  size_t role_bytes;
  const char* content;
  size_t content_bytes;
} awq2trt_message;

typedef struct awq2trt_text {
  const char* data;
  size_t bytes;
} awq2trt_text;

typedef struct awq2trt_bias {
  int32_t token;
  float bias;
} awq2trt_bias;

/* Zeros are the defaults: a top_p or repetition_penalty of 0 means 1. */
typedef struct awq2trt_generate_options {
  size_t size;
  int64_t max_tokens;
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  float repetition_penalty;
  int32_t has_seed;
  uint64_t seed;
  const awq2trt_bias* logit_bias;
  size_t logit_bias_count;
  const awq2trt_text* stop;
  size_t stop_count;
  const int32_t* stop_tokens;
  size_t stop_tokens_count;
  int32_t ignore_model_stops;
  int32_t reserved; /* 0 */
} awq2trt_generate_options;

/* Freed with awq2trt_result_free. */
typedef struct awq2trt_result {
  char* text; /* ends in a zero byte, which `text_bytes` does not count */
  size_t text_bytes;
  int32_t* tokens;
  size_t tokens_count;
  int32_t finish_reason; /* of enum FinishReason in awq2trt.hpp */
  int32_t reserved;
  int64_t prompt_tokens;
  int64_t new_tokens;
  double prefill_ms;
  double decode_ms;
} awq2trt_result;

/* Receives complete characters as they become certain; returns 0 to end the answer. */
typedef int32_t (*awq2trt_callback)(const char* text, size_t bytes, void* context);

AWQ2TRT_API const char* awq2trt_version(void);
AWQ2TRT_API const char* awq2trt_last_error(void);
AWQ2TRT_API void awq2trt_free(void* result);

/* `options` may be null. */
AWQ2TRT_API int32_t awq2trt_model_load(const char* directory, const awq2trt_load_options* options,
                                       awq2trt_model** model);
/* Sessions keep the parts of it that they need, so the model may be closed before them. */
AWQ2TRT_API void awq2trt_model_close(awq2trt_model* model);
AWQ2TRT_API int64_t awq2trt_model_capacity(const awq2trt_model* model);
AWQ2TRT_API int64_t awq2trt_model_vocab_size(const awq2trt_model* model);
AWQ2TRT_API int64_t
awq2trt_model_tokens_per_image(const awq2trt_model* model);              /* 0: it reads text alone; -1: by its size */
AWQ2TRT_API const char* awq2trt_model_title(const awq2trt_model* model); /* valid until the model is closed */
/* Returns how far golden outputs are off, and how far they may be; either pointer may be null. */
AWQ2TRT_API int32_t awq2trt_model_check(const awq2trt_model* model, double* worst_error, double* allowed_error);
AWQ2TRT_API int32_t awq2trt_encode(const awq2trt_model* model, const char* text, size_t bytes, int32_t allow_special,
                                   int32_t** tokens, size_t* count);
AWQ2TRT_API int32_t awq2trt_decode(const awq2trt_model* model, const int32_t* tokens, size_t count, char** text,
                                   size_t* bytes);

AWQ2TRT_API int32_t awq2trt_session_open(const awq2trt_model* model, int64_t max_tokens, awq2trt_session** session);
AWQ2TRT_API void awq2trt_session_close(awq2trt_session* session);
AWQ2TRT_API int32_t awq2trt_session_append(awq2trt_session* session, const awq2trt_message* messages, size_t count);
AWQ2TRT_API int32_t awq2trt_session_append_text(awq2trt_session* session, const char* text, size_t bytes,
                                                int32_t allow_special);
AWQ2TRT_API int32_t awq2trt_session_append_tokens(awq2trt_session* session, const int32_t* tokens, size_t count);
AWQ2TRT_API int32_t awq2trt_session_append_image(awq2trt_session* session, const uint8_t* rgb, int32_t width,
                                                 int32_t height);
/* `options` and `callback` may be null. */
AWQ2TRT_API int32_t awq2trt_session_generate(awq2trt_session* session, const awq2trt_generate_options* options,
                                             awq2trt_callback callback, void* context, awq2trt_result* result);
AWQ2TRT_API void awq2trt_result_free(awq2trt_result* result);
/* `logits` has room for `count` numbers, which must be awq2trt_model_vocab_size. */
AWQ2TRT_API int32_t awq2trt_session_logits(awq2trt_session* session, float* logits, size_t count);
AWQ2TRT_API int32_t awq2trt_session_rewind(awq2trt_session* session, int64_t tokens);
AWQ2TRT_API int32_t awq2trt_session_fork(const awq2trt_session* session, awq2trt_session** copy);
AWQ2TRT_API void awq2trt_session_cancel(awq2trt_session* session); /* from any thread */
AWQ2TRT_API int32_t awq2trt_session_tokens(const awq2trt_session* session, int32_t** tokens, size_t* count);
AWQ2TRT_API int64_t awq2trt_session_capacity(const awq2trt_session* session);

/* The position of a field in one of the structures, for callers that declare them in another language. */
typedef struct awq2trt_layout {
  const char* structure;
  const char* name; /* "" for the structure itself */
  size_t offset, bytes;
} awq2trt_layout;
AWQ2TRT_API const awq2trt_layout* awq2trt_layouts(size_t* count);

#ifdef __cplusplus
}
#endif

#endif
