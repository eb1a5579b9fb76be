// See weights.h.
#include "generation/weights.h"

#include <array>
#include <cmath>

namespace awq2trt {

namespace {

constexpr double kLog2E = 0x1.71547652b82fep+0;

// Taylor's series of 2^f, ln(2)^i / i!: within 2^-46 of it where |f| <= 1/2.
constexpr std::array<double, 12> kPowerOfTwo = {0x1.0000000000000p+0,  0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,
                                                0x1.c6b08d704a0c0p-5,  0x1.3b2ab6fba4e77p-7,  0x1.5d87fe78a6731p-10,
                                                0x1.430912f86c787p-13, 0x1.ffcbfc588b0c7p-17, 0x1.62c0223a5c824p-20,
                                                0x1.b5253d395e7c4p-24, 0x1.e4cf5158b8ecap-28, 0x1.e8cac7351bb25p-32};

}  // namespace

uint64_t weight_of(double exponent) {
  if (!(exponent >= kLowestExponent)) return 0;
  const double power = exponent * kLog2E;
  const double whole = std::floor(power + 0.5);
  const double fraction = power - whole;
  double value = kPowerOfTwo.back();
  for (size_t i = kPowerOfTwo.size() - 1; i-- > 0;) value = value * fraction + kPowerOfTwo[i];
  return static_cast<uint64_t>(std::ldexp(value, static_cast<int>(whole) + kWeightBits));
}

}  // namespace awq2trt
