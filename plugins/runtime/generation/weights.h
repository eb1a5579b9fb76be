// Probabilities as integers, so that their sums are the same in whatever order they are taken. In: how far a token's
// score lies below the best one, over the temperature; out: its weight, e to that power in units of 2^-40, rounded
// down.
#pragma once

#include <cstdint>

namespace awq2trt {

constexpr int kWeightBits = 40;  // the best token's weight is 2^40
constexpr uint64_t kBestWeight = uint64_t{1} << kWeightBits;
constexpr double kLowestExponent = -28.0;  // e^-28 is less than 2^-40

// `exponent`: at most 0, or minus infinity. Every step is one operation of IEEE 754 on doubles, rounded to the nearest,
// which docs/sampling.md lists; the file is compiled without contracting two of them into one.
uint64_t weight_of(double exponent);

}  // namespace awq2trt
