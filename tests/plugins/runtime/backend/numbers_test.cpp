// Widening and narrowing against the definition of each type, for all of their 65536 values.
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

TEST(Narrow, KeepsWholeNumbers) {
  const std::vector<float> wide = {0.0f, 1.0f, 4711.0f, 16777216.0f};  // up to the largest capacity, 2^24
  std::vector<int64_t> stored(wide.size());
  narrow(wide.data(), Number::kInt64, wide.size(), stored.data());
  EXPECT_EQ(stored, (std::vector<int64_t>{0, 1, 4711, 16777216}));
  EXPECT_EQ(bytes_of(Number::kInt64), 8u);
}

// Between neighbours, which are their numbers: below the middle, in the middle and above.
TEST_P(Widen, IsUndoneByNarrowingWhichTakesTheNearest) {
  const auto [number, exponent_bits] = GetParam();
  const auto narrowed = [type = number](float wide) {
    uint16_t stored = 0;
    narrow(&wide, type, 1, &stored);
    return stored;
  };
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    const auto stored = static_cast<uint16_t>(bits);
    const float value = by_definition(stored, exponent_bits);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(by_definition(narrowed(value), exponent_bits)));
      continue;
    }
    ASSERT_EQ(narrowed(value), stored);
    const float next = by_definition(static_cast<uint16_t>(bits + 1), exponent_bits);
    if (!std::isfinite(value) || !std::isfinite(next) || std::signbit(value) != std::signbit(next)) continue;
    const float middle = value / 2 + next / 2;
    ASSERT_EQ(narrowed(middle), (bits & 1) == 0 ? stored : stored + 1) << bits;
    ASSERT_EQ(narrowed(std::nextafter(middle, 0.0f)), stored) << bits;
    ASSERT_EQ(narrowed(std::nextafter(middle, next)), stored + 1) << bits;
  }
}

TEST(Narrow, GivesInfinityBeyondTheLargestNumber) {
  const std::vector<float> wide = {65504.0f, 65519.99f, 65520.0f, -1e30f, 3.4e38f};
  std::vector<uint16_t> halves(wide.size()), others(wide.size());
  narrow(wide.data(), Number::kFloat16, wide.size(), halves.data());
  EXPECT_EQ(halves, (std::vector<uint16_t>{0x7bff, 0x7bff, 0x7c00, 0xfc00, 0x7c00}));
  narrow(wide.data(), Number::kBFloat16, wide.size(), others.data());
  EXPECT_EQ(others[4], 0x7f80);  // above the middle between the largest and the next, which would be infinite
  std::vector<float> copied(wide.size());
  narrow(wide.data(), Number::kFloat32, wide.size(), copied.data());
  EXPECT_EQ(copied, wide);
}

TEST(WidenFloat, CopiesThem) {
  const std::vector<float> stored = {0.0f, -1.5f, std::numeric_limits<float>::infinity()};
  std::vector<float> result(3);
  widen(stored.data(), Number::kFloat32, 3, result.data());
  EXPECT_EQ(result, stored);
}

}  // namespace
}  // namespace awq2trt
