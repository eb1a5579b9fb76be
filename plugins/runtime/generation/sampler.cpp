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
  if (top_k_ > 0 && top_k_ < vocab_size_) {
    take_best(scores, best);
    if (top_p_ < 1.0f) keep_mass(mass(candidates_.size(), [&](size_t i) { return candidates_[i].weight; }));
  } else {
    weights_.resize(vocab_size_);
    weigh(scores, vocab_size_, best, temperature_, weights_.data());
    const auto weight_of = [&](size_t i) { return weights_[i]; };
    if (top_p_ == 1.0f) return static_cast<int32_t>(draw_index(vocab_size_, weight_of));
    const uint64_t enough = mass(vocab_size_, weight_of);
    take_mass(scores, best, enough);
    keep_mass(enough);
  }
  return candidates_[draw_index(candidates_.size(), [&](size_t i) { return candidates_[i].weight; })].id;
}

// What top-p wants of all weights together.
template <typename WeightOf>
uint64_t Sampler::mass(size_t count, const WeightOf& weight_of) const {
  uint64_t total = 0;
  for (size_t i = 0; i < count; ++i) total += weight_of(i);
  return static_cast<uint64_t>(static_cast<double>(top_p_) * static_cast<double>(total));
}

// Min-p, and the draw: index of one of `count` weights, in the order of their ids.
template <typename WeightOf>
size_t Sampler::draw_index(size_t count, const WeightOf& weight_of) {
  const auto least = static_cast<uint64_t>(std::ldexp(static_cast<double>(min_p_), kWeightBits));
  uint64_t total = 0;
  for (size_t i = 0; i < count; ++i) total += weight_of(i) >= least ? weight_of(i) : 0;
  __extension__ using Wide = unsigned __int128;
  auto left = static_cast<uint64_t>(static_cast<Wide>(random_.next()) * total >> 64);
  for (size_t i = 0; i < count; ++i) {
    if (weight_of(i) < least) continue;
    if (left < weight_of(i)) return i;
    left -= weight_of(i);
  }
  throw Error(ErrorCode::kInternal, "the random number is above the sum of the weights", "Sampler::draw", "");
}

// Top-k: the best ones in the order of their ids. Collects those that are better than the best k so far, and now and
// then throws out all but k.
void Sampler::take_best(const float* scores, float best) {
  const size_t room = top_k_ + std::max<size_t>(top_k_, 1000);
  float bound = -kInfinity;  // of the k-th so far: one of the same score and a higher id is not better
  candidates_.clear();
  const auto prune = [&] {
    const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(top_k_ - 1);
    std::nth_element(candidates_.begin(), last, candidates_.end(), better);
    bound = last->score;
    candidates_.resize(top_k_);
  };
  for (size_t id = 0; id < vocab_size_; ++id) {
    if (!(scores[id] > bound)) continue;
    candidates_.push_back({scores[id], static_cast<int32_t>(id), 0});
    if (candidates_.size() == room) prune();
  }
  if (candidates_.size() > top_k_) prune();
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& left, const Candidate& right) { return left.id < right.id; });
  for (Candidate& candidate : candidates_) weigh(&candidate.score, 1, best, temperature_, &candidate.weight);
}

// Candidates of top-p, in the order of their ids: few tokens weigh most, so the best are looked at first.
void Sampler::take_mass(const float* scores, float best, uint64_t enough) {
  constexpr double kDepths[] = {2.0, 6.0, 12.0, 1.0 - kLowestExponent};
  for (const double depth : kDepths) {
    const double bound = static_cast<double>(best) - depth * temperature_;
    candidates_.clear();
    uint64_t sum = 0;
    for (size_t id = 0; id < vocab_size_; ++id) {
      if (!(scores[id] >= bound)) continue;
      candidates_.push_back({scores[id], static_cast<int32_t>(id), weights_[id]});
      sum += weights_[id];
    }
    if (sum >= enough) return;
  }
}

// Top-p: the fewest best candidates that weigh `enough` together. Halves what is looked at until the last of them is
// left, and adds up those that are certain.
void Sampler::keep_mass(uint64_t enough) {
  ranked_ = candidates_;
  auto first = ranked_.begin(), last = ranked_.end();
  uint64_t before = 0;
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, better);
    uint64_t half = before;
    for (auto candidate = first; candidate != middle; ++candidate) half += candidate->weight;
    if (half >= enough) {
      last = middle;
    } else {
      first = middle;
      before = half;
    }
  }
  const Candidate worst = *first;
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [&](const Candidate& candidate) { return better(worst, candidate); }),
                    candidates_.end());
}

}  // namespace awq2trt
