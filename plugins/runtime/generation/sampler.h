// Chooses the next token. In: its scores, options, and the tokens so far; out: an id. The order of operations and every
// rounding are written down in docs/sampling.md: a seed gives the same tokens wherever the scores are the same, here
// and in Python (awq2trt/runtime/sampling.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "awq2trt/awq2trt.hpp"
#include "generation/philox.h"

namespace awq2trt {

class Sampler {
 public:
  // Throws Error, kBadArgument, if options make no sense. Without a seed, it takes a random one from the machine.
  Sampler(const GenerateOptions& options, int64_t vocab_size);

  // Whether it always takes the best of the scores as they are: then a device may choose, and the scores need not be
  // copied from it.
  bool takes_best() const { return temperature_ == 0.0f && !adjusts(); }

  // Adds tokens of the context, for the repetition penalty. Tokens that the sampler picks are added without this call.
  void see(const int32_t* tokens, size_t count);

  // `logits`: [vocab_size]. Throws Error, kRunFailed, if they are not usable: one is NaN or plus infinity, or all are
  // minus infinity.
  int32_t pick(const float* logits);

 private:
  struct Candidate {
    float score;
    int32_t id;  // or the index among the tokens that top-k keeps, which are in the same order
  };
  static bool better(const Candidate& left, const Candidate& right);

  bool adjusts() const { return !bias_.empty() || penalty_ != 1.0f; }
  const float* adjusted(const float* logits);
  float highest(const float* scores) const;
  int32_t draw(const float* scores, float best);
  void take_best(const float* scores);
  void drop_tail(const float* scores, float best);
  Candidate last_of_mass(const float* scores, float best, uint64_t enough);
  size_t draw_index();

  size_t vocab_size_;
  float temperature_, top_p_, min_p_, penalty_;
  size_t top_k_;
  std::vector<std::pair<int32_t, float>> bias_;
  Philox random_;

  std::vector<char> is_seen_;  // by id; empty without a penalty
  std::vector<int32_t> seen_;

  // Work buffers, kept from token to token.
  std::vector<float> scores_;
  std::vector<Candidate> candidates_;
  std::vector<float> best_scores_;  // of the tokens that top-k keeps, in the order of their ids
  std::vector<uint64_t> weights_;   // of those, or of all
  std::vector<int32_t> distances_;  // of scores, see weights.h
  std::vector<uint64_t> mass_;      // of weights, by their distance from the best score
  std::vector<Candidate> ranked_;   // of one distance
};

}  // namespace awq2trt
