// The sampler for programs in C, and for Python's tests, which compare it with the one in Python. No exception leaves a
// function: those that may fail return a negative code of ErrorCode; then awq2trt_sampler_last_error() describes the
// error on this thread until the next call.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define AWQ2TRT_SAMPLER_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct awq2trt_sampler awq2trt_sampler;

typedef struct awq2trt_sampling {
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  float repetition_penalty;
  uint64_t seed;
  const int32_t* bias_ids;
  const float* biases;
  size_t bias_count;
} awq2trt_sampling;

AWQ2TRT_SAMPLER_API const char* awq2trt_sampler_last_error(void);
AWQ2TRT_SAMPLER_API int32_t awq2trt_sampler_open(const awq2trt_sampling* options, int64_t vocab_size,
                                                 awq2trt_sampler** sampler);
AWQ2TRT_SAMPLER_API void awq2trt_sampler_close(awq2trt_sampler* sampler);
AWQ2TRT_SAMPLER_API int32_t awq2trt_sampler_see(awq2trt_sampler* sampler, const int32_t* tokens, size_t count);
// The token, or a code. `logits`: [vocab_size].
AWQ2TRT_SAMPLER_API int32_t awq2trt_sampler_pick(awq2trt_sampler* sampler, const float* logits);

#ifdef __cplusplus
}
#endif
