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
constexpr size_t kPiece = 256;  // weights that the draw adds up before it looks at single ones

[[noreturn]] void refuse(const char* option, const std::string& got, const char* expected) {
  throw Error(ErrorCode::kBadArgument, "got " + got + ", expected " + expected,
              std::string("GenerateOptions::") + option, "");
}

template <typename Number>
void check(bool sensible, const char* option, Number got, const char* expected) {
  if (!sensible) refuse(option, std::to_string(got), expected);
}

// Refuses options that make no sense; returns the size of the vocabulary.
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
  const auto [best, sound] = find_highest(scores, vocab_size_);
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

// Draws a token by the weights of the tokens that all rules keep.
int32_t Sampler::draw(const float* scores, float best) {
  const bool few = top_k_ > 0 && top_k_ < vocab_size_;
  if (few) take_best(scores);
  const float* const kept = few ? best_scores_.data() : scores;
  weights_.resize(few ? best_scores_.size() : vocab_size_);
  weigh(kept, weights_.size(), best, temperature_, weights_.data());
  if (top_p_ < 1.0f) drop_tail(kept, best);
  const size_t index = draw_index();
  return few ? candidates_[index].id : static_cast<int32_t>(index);
}

// Top-k: the best tokens in the order of their ids. Collects tokens that are better than the k-th best so far, and now
// and then discards all except the best k.
void Sampler::take_best(const float* scores) {
  const size_t room = top_k_ + std::max<size_t>(top_k_, 1000);
  float bound = -kInfinity;  // of the k-th so far: a token of the same score and a higher id is not better
  candidates_.clear();
  const auto prune = [&] {
    const auto last = candidates_.begin() + static_cast<std::ptrdiff_t>(top_k_ - 1);
    std::nth_element(candidates_.begin(), last, candidates_.end(), better);
    bound = last->score;
    candidates_.resize(top_k_);
  };
  for (size_t id = 0; id < vocab_size_; ++id) {
    if (!(scores[id] > bound)) continue;
    candidates_.push_back({scores[id], static_cast<int32_t>(id)});
    if (candidates_.size() == room) prune();
  }
  if (candidates_.size() > top_k_) prune();
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& left, const Candidate& right) { return left.id < right.id; });
  best_scores_.clear();
  for (const Candidate& candidate : candidates_) best_scores_.push_back(candidate.score);
}

// Top-p: keeps the fewest best tokens that weigh enough together; the weights of the others become 0.
void Sampler::drop_tail(const float* scores, float best) {
  const uint64_t total = sum(weights_.data(), weights_.size());
  const auto enough = static_cast<uint64_t>(static_cast<double>(top_p_) * static_cast<double>(total));
  const Candidate last = last_of_mass(scores, best, enough);
  drop_scores_below(last.score, scores, weights_.size(), weights_.data());
  for (const Candidate& candidate : ranked_) {
    if (better(last, candidate)) weights_[candidate.id] = 0;
  }
}

// The last token of top-p. Only the tokens at the distance where the mass is reached are compared with each other; they
// are in `ranked_` then.
Sampler::Candidate Sampler::last_of_mass(const float* scores, float best, uint64_t enough) {
  const size_t count = weights_.size();
  distances_.resize(count);
  mass_.assign(kDistances, 0);
  Distances(best, temperature_).add_up(scores, weights_.data(), count, distances_.data(), mass_.data());
  uint64_t before = 0;
  int32_t reached = 0;
  while (before + mass_[reached] < enough) before += mass_[reached++];
  ranked_.clear();
  for (size_t i = 0; i < count; ++i) {
    if (distances_[i] == reached) ranked_.push_back({scores[i], static_cast<int32_t>(i)});
  }
  // Halves the candidates until the last token is found, and adds up those that are certain to be kept.
  auto first = ranked_.begin(), last = ranked_.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, better);
    uint64_t half = before;
    for (auto candidate = first; candidate != middle; ++candidate) half += weights_[candidate->id];
    if (half >= enough) {
      last = middle;
    } else {
      first = middle;
      before = half;
    }
  }
  return *first;
}

// Min-p, and the draw: returns the index of a weight.
size_t Sampler::draw_index() {
  const size_t count = weights_.size();
  if (min_p_ > 0.0f) {
    drop_below(static_cast<uint64_t>(std::ldexp(static_cast<double>(min_p_), kWeightBits)), count, weights_.data());
  }
  __extension__ using Wide = unsigned __int128;
  auto left = static_cast<uint64_t>(static_cast<Wide>(random_.next()) * sum(weights_.data(), count) >> 64);
  size_t i = 0;
  for (; i + kPiece <= count; i += kPiece) {
    const uint64_t piece = sum(&weights_[i], kPiece);
    if (left < piece) break;
    left -= piece;
  }
  for (; i < count; ++i) {
    if (left < weights_[i]) return i;
    left -= weights_[i];
  }
  throw Error(ErrorCode::kInternal, "the random number is above the sum of the weights", "Sampler::draw", "");
}

}  // namespace awq2trt
