// Widening against the definition of each type, for all of their 65536 values.
#include "backend/numbers.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace awq2trt {
namespace {

// IEEE 754: a sign, `exponent_bits`, and the rest is the fraction.
float by_definition(uint16_t bits, int exponent_bits) {
  const int fraction_bits = 15 - exponent_bits, most = (1 << exponent_bits) - 1, bias = most / 2;
  const int exponent = bits >> fraction_bits & most, fraction = bits & ((1 << fraction_bits) - 1);
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == most) return fraction != 0 ? std::nanf("") : sign * std::numeric_limits<float>::infinity();
  const int whole = exponent == 0 ? fraction : fraction + (1 << fraction_bits);
  return sign * std::ldexp(static_cast<float>(whole), (exponent == 0 ? 1 : exponent) - bias - fraction_bits);
}

class Widen : public testing::TestWithParam<std::pair<Number, int>> {};

TEST_P(Widen, GivesEachValueOfATypeOfTwoBytes) {
  const auto [number, exponent_bits] = GetParam();
  EXPECT_EQ(bytes_of(number), 2u);
  std::vector<uint16_t> stored(1 << 16);
  std::iota(stored.begin(), stored.end(), uint16_t{0});
  for (const size_t first : {0, 1, 13}) {  // vectors that begin anywhere, and their remainders
    std::vector<float> result(stored.size() - first);
    widen(&stored[first], number, result.size(), result.data());
    for (size_t i = 0; i < result.size(); ++i) {
      const float expected = by_definition(stored[first + i], exponent_bits);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(result[i])) << stored[first + i];
      } else {
        ASSERT_EQ(result[i], expected) << stored[first + i];
        ASSERT_EQ(std::signbit(result[i]), std::signbit(expected)) << stored[first + i];
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Widen,
                         testing::Values(std::pair{Number::kFloat16, 5}, std::pair{Number::kBFloat16, 8}));

TEST(WidenFloat, CopiesThem) {
  const std::vector<float> stored = {0.0f, -1.5f, std::numeric_limits<float>::infinity()};
  std::vector<float> result(3);
  widen(stored.data(), Number::kFloat32, 3, result.data());
  EXPECT_EQ(result, stored);
}

}  // namespace
}  // namespace awq2trt
