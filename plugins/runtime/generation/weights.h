// Probabilities as integers, so that their sums are the same in whatever order they are taken. In: scores; out: each
// token's weight, e to how far its score lies below the best one over the temperature, in units of 2^-40, rounded down.
#pragma once

#include <cstddef>
#include <cstdint>

namespace awq2trt {

constexpr int kWeightBits = 40;            // the best token's weight is 2^40
constexpr double kLowestExponent = -28.0;  // e^-28 is less than 2^-40: such a token's weight is 0

// `scores`, `weights`: [count]. No score is above `best`; the temperature is above 0. Every step is one operation of
// IEEE 754 on doubles, as docs/sampling.md lists them; the file is compiled without contracting two of them into one.
void weigh(const float* scores, size_t count, float best, float temperature, uint64_t* weights);

}  // namespace awq2trt
