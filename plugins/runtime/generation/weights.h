// Probabilities as integers, so that their sums are the same in any order. In: scores; out: each token's weight,
// exp((score - best) / temperature) in units of 2^-40, rounded down. Also everything else that looks at every token:
// the best score, and how much weight there is at each distance below it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace awq2trt {

constexpr int kWeightBits = 40;            // the best token's weight is 2^40
constexpr double kLowestExponent = -28.0;  // e^-28 is less than 2^-40: such a token's weight is 0
constexpr int32_t kDistances = 1024;       // of a vocabulary of 150,000, some hundred tokens have the same

// `scores`, `weights`: [count]. No score is above `best`; the temperature is above 0. Every step is one operation of
// IEEE 754 on doubles, as docs/sampling.md lists them; the file is compiled without contracting two of them into one.
void weigh(const float* scores, size_t count, float best, float temperature, uint64_t* weights);

uint64_t sum(const uint64_t* weights, size_t count);
// Set to 0 the weights of scores below `least`, or weights that are below it themselves.
void drop_scores_below(float least, const float* scores, size_t count, uint64_t* weights);
void drop_below(uint64_t least, size_t count, uint64_t* weights);

// The highest score, and whether none is NaN or plus infinity (if one is, the highest means nothing).
struct Highest {
  float score;
  bool sound;
};
Highest find_highest(const float* scores, size_t count);

// How far scores are below the best one, in steps from 0 to kDistances - 1: a better score never has a greater
// distance. The steps reach as far as weights do, so the last step has almost no weight.
class Distances {
 public:
  Distances(float best, float temperature)
      : best_(best), steps_(kDistances / (-kLowestExponent * static_cast<double>(temperature))) {}

  // Writes the distance of each score, and adds its weight to `mass` [kDistances] at that distance.
  void add_up(const float* scores, const uint64_t* weights, size_t count, int32_t* distances, uint64_t* mass) const;

 private:
  double best_, steps_;  // `steps_`: for each unit of the scores
};

}  // namespace awq2trt
