// See sampler.h.
#include "generation/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "generation/weights.h"

namespace awq2trt {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

[[noreturn]] void refuse(const char* option, const std::string& got, const char* expected) {
  throw Error(ErrorCode::kBadArgument, "got " + got + ", expected " + expected,
              std::string("GenerateOptions::") + option, "");
}

template <typename Number>
void check(bool sensible, const char* option, Number got, const char* expected) {
  if (!sensible) refuse(option, std::to_string(got), expected);
}

// Refuses options that make no sense; the size of the vocabulary.
size_t checked(const GenerateOptions& options, int64_t vocab_size) {
  const auto is_token = [&](int32_t id) { return id >= 0 && id < vocab_size; };
  check(options.temperature >= 0 && options.temperature < kInfinity, "temperature", options.temperature,
        "0 (the best token) or more");
  check(options.top_k >= 0, "top_k", options.top_k, "0 (all tokens) or more");
  check(options.top_p > 0 && options.top_p <= 1, "top_p", options.top_p, "more than 0 and at most 1");
  check(options.min_p >= 0 && options.min_p <= 1, "min_p", options.min_p, "0 to 1");
  check(options.repetition_penalty > 0 && options.repetition_penalty < kInfinity, "repetition_penalty",
        options.repetition_penalty, "more than 0");
  for (const auto& [id, bias] : options.logit_bias) {
    check(is_token(id), "logit_bias", id, "an id of the model's vocabulary");
    check(bias < kInfinity, "logit_bias", bias, "a number, or minus infinity, which forbids the token");
  }
  return static_cast<size_t>(vocab_size);
}

uint64_t machine_seed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

}  // namespace

Sampler::Sampler(const GenerateOptions& options, int64_t vocab_size)
    : vocab_size_(checked(options, vocab_size)),
      temperature_(options.temperature),
      top_p_(options.top_p),
      min_p_(options.min_p),
      penalty_(options.repetition_penalty),
      top_k_(static_cast<size_t>(options.top_k)),
      bias_(options.logit_bias),
      random_(options.seed ? *options.seed : machine_seed()),
      is_seen_(penalty_ == 1.0f ? 0 : vocab_size_) {}

void Sampler::see(const int32_t* tokens, size_t count) {
  if (is_seen_.empty()) return;
  for (size_t i = 0; i < count; ++i) {
    const int32_t id = tokens[i];
    if (id < 0 || static_cast<size_t>(id) >= vocab_size_) {
      throw Error(ErrorCode::kBadArgument, "token " + std::to_string(id) + " is not in the model's vocabulary",
                  "context", "");
    }
    if (is_seen_[id] != 0) continue;
    is_seen_[id] = 1;
    seen_.push_back(id);
  }
}

int32_t Sampler::pick(const float* logits) {
  const float* const scores = adjusted(logits);
  const float best = highest(scores);
  const int32_t id = temperature_ == 0.0f ? static_cast<int32_t>(std::find(scores, scores + vocab_size_, best) - scores)
                                          : draw(scores, best);
  see(&id, 1);
  return id;
}

// The scores with bias and penalty.
const float* Sampler::adjusted(const float* logits) {
  if (!adjusts()) return logits;
  scores_.assign(logits, logits + vocab_size_);
  for (const auto& [id, bias] : bias_) scores_[id] += bias;
  for (const int32_t id : seen_) {
    float& score = scores_[id];
    score = score > 0.0f ? score / penalty_ : score * penalty_;
  }
  return scores_.data();
}

float Sampler::highest(const float* scores) const {
  float best = -kInfinity;
  bool sound = true;
  for (size_t id = 0; id < vocab_size_; ++id) {
    sound &= scores[id] < kInfinity;  // not so for NaN
    best = scores[id] > best ? scores[id] : best;
  }
  if (sound && best > -kInfinity) return best;
  const float* const wrong =
      std::find_if(scores, scores + vocab_size_, [](float score) { return !(score < kInfinity); });
  const std::string what = sound ? "the scores of all tokens are minus infinity"
                                 : "the score of token " + std::to_string(wrong - scores) + " is " +
                                       (std::isnan(*wrong) ? "not a number" : "infinite");
  throw Error(ErrorCode::kRunFailed, what, "the model's scores",
              "see where it leaves its type's range with: awq2trt check; logit_bias must not forbid every token");
}

bool Sampler::better(const Candidate& left, const Candidate& right) {
  return left.score > right.score || (left.score == right.score && left.id < right.id);
}

// A token by the weights of those that all rules keep.
int32_t Sampler::draw(const float* scores, float best) {
  candidates_.clear();
  // One more than the lowest exponent, since the bound is rounded: scores below it need no division to be out.
  const double bound = static_cast<double>(best) + (kLowestExponent - 1.0) * temperature_;
  for (size_t id = 0; id < vocab_size_; ++id) {
    if (!(scores[id] >= bound)) continue;
    const uint64_t weight = weight_of((static_cast<double>(scores[id]) - best) / temperature_);
    if (weight > 0) candidates_.push_back({scores[id], static_cast<int32_t>(id), weight});
  }
  if (top_k_ > 0 && top_k_ < candidates_.size()) keep_best(top_k_);
  if (top_p_ < 1.0f) keep_mass();
  const auto least = static_cast<uint64_t>(std::ldexp(static_cast<double>(min_p_), kWeightBits));

  uint64_t total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight >= least ? candidate.weight : 0;
  __extension__ using Wide = unsigned __int128;
  uint64_t left = static_cast<uint64_t>(static_cast<Wide>(random_.next()) * total >> 64);
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight < least) continue;
    if (left < candidate.weight) return candidate.id;
    left -= candidate.weight;
  }
  throw Error(ErrorCode::kInternal, "the random number is above the sum of the weights", "Sampler::draw", "");
}

// Top-k, without sorting what is not kept.
void Sampler::keep_best(size_t count) {
  ranked_ = candidates_;
  std::nth_element(ranked_.begin(), ranked_.begin() + (count - 1), ranked_.end(), better);
  keep_to(ranked_[count - 1]);
}

// Top-p.
void Sampler::keep_mass() {
  uint64_t total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  const auto mass = static_cast<uint64_t>(static_cast<double>(top_p_) * static_cast<double>(total));
  keep_to(last_of_mass(mass));
}

// The last of the fewest best candidates that weigh `mass` together. Halves the candidates until one is left, and adds
// up those that are certain.
Sampler::Candidate Sampler::last_of_mass(uint64_t mass) {
  ranked_ = candidates_;
  auto first = ranked_.begin(), last = ranked_.end();
  uint64_t before = 0;
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, better);
    uint64_t half = before;
    for (auto candidate = first; candidate != middle; ++candidate) half += candidate->weight;
    if (half >= mass) {
      last = middle;
    } else {
      first = middle;
      before = half;
    }
  }
  return *first;
}

void Sampler::keep_to(const Candidate& last) {
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [&](const Candidate& candidate) { return better(last, candidate); }),
                    candidates_.end());
}

}  // namespace awq2trt
