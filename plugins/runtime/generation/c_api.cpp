// The C interface of the sampler; see c_api.h.
#include "generation/c_api.h"

#include <cstring>
#include <new>

#include "generation/sampler.h"

struct awq2trt_sampler {
  awq2trt::Sampler sampler;
};

namespace {

using awq2trt::Error;
using awq2trt::ErrorCode;

// A fixed buffer for the text of an error, since memory may have run out.
thread_local char last_error[1024] = "";

int32_t fail(ErrorCode code, const char* text) {
  std::strncpy(last_error, text, sizeof(last_error) - 1);
  return -static_cast<int32_t>(code);
}

// The result of `work`, or an error's code.
template <typename Work>
int32_t guarded(const Work& work) noexcept {
  last_error[0] = '\0';
  try {
    return work();
  } catch (const Error& error) {
    return fail(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kInternal, "out of memory");
  } catch (const std::exception& error) {
    return fail(ErrorCode::kInternal, error.what());
  }
}

void require(bool given) {
  if (!given) throw Error(ErrorCode::kBadArgument, "a null pointer", "the call", "");
}

}  // namespace

const char* awq2trt_sampler_last_error(void) { return last_error; }

int32_t awq2trt_sampler_open(const awq2trt_sampling* options, int64_t vocab_size, awq2trt_sampler** sampler) {
  return guarded([&] {
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
  return guarded([&] {
    require(sampler != nullptr && (tokens != nullptr || count == 0));
    sampler->sampler.see(tokens, count);
    return 0;
  });
}

int32_t awq2trt_sampler_pick(awq2trt_sampler* sampler, const float* logits) {
  return guarded([&] {
    require(sampler != nullptr && logits != nullptr);
    return sampler->sampler.pick(logits);
  });
}
