// The C interface of the sampler; see c_api.h.
#include "generation/c_api.h"

#include "generation/sampler.h"
#include "library/c_calls.h"

struct awq2trt_sampler {
  awq2trt::Sampler sampler;
};

namespace {

using awq2trt::c_calls::require;

// The result of `work`, or an error's code with its sign changed.
template <typename Work>
int32_t result_of(const Work& work) noexcept {
  int32_t result = 0;
  const int32_t code = awq2trt::c_calls::guarded([&] { result = work(); });
  return code == 0 ? result : -code;
}

}  // namespace

const char* awq2trt_sampler_last_error(void) { return awq2trt::c_calls::last_error; }

int32_t awq2trt_sampler_open(const awq2trt_sampling* options, int64_t vocab_size, awq2trt_sampler** sampler) {
  return result_of([&] {
    require(options != nullptr && sampler != nullptr && (options->bias_count == 0 || options->bias_ids != nullptr) &&
            (options->bias_count == 0 || options->biases != nullptr));
    awq2trt::GenerateOptions generate;
    generate.temperature = options->temperature;
    generate.top_k = options->top_k;
    generate.top_p = options->top_p;
    generate.min_p = options->min_p;
    generate.repetition_penalty = options->repetition_penalty;
    generate.seed = options->seed;
    for (size_t i = 0; i < options->bias_count; ++i) {
      generate.logit_bias.emplace_back(options->bias_ids[i], options->biases[i]);
    }
    *sampler = new awq2trt_sampler{awq2trt::Sampler(generate, vocab_size)};
    return 0;
  });
}

void awq2trt_sampler_close(awq2trt_sampler* sampler) { delete sampler; }

int32_t awq2trt_sampler_see(awq2trt_sampler* sampler, const int32_t* tokens, size_t count) {
  return result_of([&] {
    require(sampler != nullptr && (tokens != nullptr || count == 0));
    sampler->sampler.see(tokens, count);
    return 0;
  });
}

int32_t awq2trt_sampler_pick(awq2trt_sampler* sampler, const float* logits) {
  return result_of([&] {
    require(sampler != nullptr && logits != nullptr);
    return sampler->sampler.pick(logits);
  });
}
