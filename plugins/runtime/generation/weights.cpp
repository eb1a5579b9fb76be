// See weights.h.
#include "generation/weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "backend/vectors.h"

namespace awq2trt {

namespace {

constexpr double kLog2E = 0x1.71547652b82fep+0;

// Taylor's series of 2^f, ln(2)^i / i!: within 2^-46 of the value where |f| <= 1/2.
constexpr std::array<double, 12> kPowerOfTwo = {0x1.0000000000000p+0,  0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,
                                                0x1.c6b08d704a0c0p-5,  0x1.3b2ab6fba4e77p-7,  0x1.5d87fe78a6731p-10,
                                                0x1.430912f86c787p-13, 0x1.ffcbfc588b0c7p-17, 0x1.62c0223a5c824p-20,
                                                0x1.b5253d395e7c4p-24, 0x1.e4cf5158b8ecap-28, 0x1.e8cac7351bb25p-32};

constexpr int kMantissaBits = 52, kExponentBias = 1023;
// Adding this to a double rounds it to an integer, which is then in its last bits; one constant for numbers of either
// sign, and one for positive numbers.
constexpr double kRoundSigned = 0x1.8p+52, kRound = 0x1.0p+52;
constexpr uint64_t kMantissa = (uint64_t{1} << kMantissaBits) - 1;

inline uint64_t bits_of(double value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline double double_of(uint64_t bits) {
  double value = 0;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

// No branches and no calls, so that compilers make vectors of it.
AWQ2TRT_VECTORS void weigh(const float* scores, size_t count, float best, float temperature, uint64_t* weights) {
  const double highest = best, divisor = temperature;
  for (size_t i = 0; i < count; ++i) {
    const double given = (static_cast<double>(scores[i]) - highest) / divisor;
    const double exponent = given > kLowestExponent ? given : kLowestExponent;
    const double power = exponent * kLog2E;
    const double shifted = power + kRoundSigned;
    const double fraction = power - (shifted - kRoundSigned);
    double value = kPowerOfTwo[11];
    for (int j = 10; j >= 0; --j) value = value * fraction + kPowerOfTwo[j];
    // 2^(whole + kWeightBits): the last bits of `shifted` become the exponent of a double.
    const uint64_t scale = (bits_of(shifted) + kExponentBias + kWeightBits) << kMantissaBits;
    const double scaled = value * double_of(scale);
    const double rounded = scaled + kRound;
    const uint64_t whole = (bits_of(rounded) & kMantissa) - (rounded - kRound > scaled ? 1 : 0);
    weights[i] = given >= kLowestExponent ? whole : 0;
  }
}

// In lanes, so that compilers make vectors of it; the highest of the lanes is the highest of all.
AWQ2TRT_VECTORS Highest find_highest(const float* scores, size_t count) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr size_t kLanes = 32;
  std::array<float, kLanes> highest;
  std::array<uint32_t, kLanes> wrong{};
  highest.fill(-kInfinity);
  const auto look = [&](size_t lane, float score) {
    highest[lane] = score > highest[lane] ? score : highest[lane];
    wrong[lane] |= score < kInfinity ? 0u : 1u;  // NaN is not less
  };
  size_t begin = 0;
  for (; begin + kLanes <= count; begin += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) look(lane, scores[begin + lane]);
  }
  for (size_t i = begin; i < count; ++i) look(i - begin, scores[i]);
  return {*std::max_element(highest.begin(), highest.end()),
          std::none_of(wrong.begin(), wrong.end(), [](uint32_t lane) { return lane != 0; })};
}

AWQ2TRT_VECTORS void Distances::add_up(const float* scores, const uint64_t* weights, size_t count, int32_t* distances,
                                       uint64_t* mass) const {
  constexpr double kLast = kDistances - 1;
  const double best = best_, steps = steps_;
  for (size_t i = 0; i < count; ++i) {
    const double distance = (best - static_cast<double>(scores[i])) * steps;
    distances[i] = static_cast<int32_t>(distance < kLast ? distance : kLast);
  }
  for (size_t i = 0; i < count; ++i) mass[distances[i]] += weights[i];
}

AWQ2TRT_VECTORS uint64_t sum(const uint64_t* weights, size_t count) {
  uint64_t total = 0;
  for (size_t i = 0; i < count; ++i) total += weights[i];
  return total;
}

AWQ2TRT_VECTORS void drop_scores_below(float least, const float* scores, size_t count, uint64_t* weights) {
  for (size_t i = 0; i < count; ++i) weights[i] &= scores[i] >= least ? ~uint64_t{0} : 0;
}

// Weights are below 2^63, and CPUs compare signed numbers faster.
AWQ2TRT_VECTORS void drop_below(uint64_t least, size_t count, uint64_t* weights) {
  const auto bound = static_cast<int64_t>(least);
  for (size_t i = 0; i < count; ++i) weights[i] &= static_cast<int64_t>(weights[i]) >= bound ? ~uint64_t{0} : 0;
}

}  // namespace awq2trt
