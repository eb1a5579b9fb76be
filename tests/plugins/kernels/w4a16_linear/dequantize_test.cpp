// dequantize.h on the CPU: the same code that the kernels run, for all codes and zero points.
#include "kernels/w4a16_linear/dequantize.h"

#include <gtest/gtest.h>

#include "kernels/w4a16_linear/reference.h"

namespace awq2trt {
namespace {

constexpr int kPairOrder[4][2] = {{0, 4}, {1, 5}, {2, 6}, {3, 7}};

float low_of(uint32_t pair, __half) { return __low2float(pair_of<__half2>(pair)); }
float high_of(uint32_t pair, __half) { return __high2float(pair_of<__half2>(pair)); }
float low_of(uint32_t pair, __nv_bfloat16) { return __low2float(pair_of<__nv_bfloat162>(pair)); }
float high_of(uint32_t pair, __nv_bfloat16) { return __high2float(pair_of<__nv_bfloat162>(pair)); }

template <typename T>
class Dequantize : public testing::Test {};
using Types = testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(Dequantize, Types);

TYPED_TEST(Dequantize, LiteralWord) {
  // Nibbles, lowest first: 0 1 2 3 4 5 6 7 as in 0x76543210; the zero point is -1 (0xf).
  const CodePairs pairs = dequantize_word(0x76543210u, ZeroPoint<TypeParam>::from_nibble(0xf));
  const float expected[4][2] = {{1, 5}, {2, 6}, {3, 7}, {4, 8}};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(low_of(pairs.pair[i], TypeParam{}), expected[i][0]);
    EXPECT_EQ(high_of(pairs.pair[i], TypeParam{}), expected[i][1]);
  }
}

TYPED_TEST(Dequantize, EveryCodeInEveryPlaceWithEveryZeroPoint) {
  for (uint32_t zero = 0; zero < 16; ++zero) {
    for (uint32_t code = 0; code < 16; ++code) {
      for (int place = 0; place < 8; ++place) {
        const uint32_t others = 0x5a3c69f1u;  // the neighbours' values must not matter
        const uint32_t word = (others & ~(0xfu << (4 * place))) | code << (4 * place);
        const auto* bytes = reinterpret_cast<const uint8_t*>(&word);
        const uint8_t zero_byte = static_cast<uint8_t>(zero);
        const CodePairs pairs = dequantize_word(word, ZeroPoint<TypeParam>::from_nibble(zero));
        for (int i = 0; i < 4; ++i) {
          ASSERT_EQ(low_of(pairs.pair[i], TypeParam{}), int4_at(bytes, kPairOrder[i][0]) - int4_at(&zero_byte, 0));
          ASSERT_EQ(high_of(pairs.pair[i], TypeParam{}), int4_at(bytes, kPairOrder[i][1]) - int4_at(&zero_byte, 0));
        }
      }
    }
  }
}

TYPED_TEST(Dequantize, ByteByByteEveryCodeInEveryPlaceWithEveryZeroPoint) {
  for (uint32_t zero = 0; zero < 16; ++zero) {
    for (uint32_t code = 0; code < 16; ++code) {
      for (int place = 0; place < 8; ++place) {
        const uint32_t others = 0x5a3c69f1u;
        const uint32_t word = (others & ~(0xfu << (4 * place))) | code << (4 * place);
        const auto* bytes = reinterpret_cast<const uint8_t*>(&word);
        const uint8_t zero_byte = static_cast<uint8_t>(zero);
        const auto zero_point = OrderedZeroPoint<TypeParam>::from_nibble(zero | 0x50);  // bits above must not matter
        for (int i = 0; i < 4; ++i) {
          const uint32_t pair = dequantize_byte(word, byte_selector(i), zero_point);
          ASSERT_EQ(low_of(pair, TypeParam{}), int4_at(bytes, 2 * i) - int4_at(&zero_byte, 0));
          ASSERT_EQ(high_of(pair, TypeParam{}), int4_at(bytes, 2 * i + 1) - int4_at(&zero_byte, 0));
        }
      }
    }
  }
}

TYPED_TEST(Dequantize, ZeroPointFromItsLowPartIsTheSame) {
  for (uint32_t nibble = 0; nibble < 16; ++nibble) {
    const auto whole = ZeroPoint<TypeParam>::from_nibble(nibble);
    const auto rebuilt = ZeroPoint<TypeParam>::from_low(whole.low);
    EXPECT_EQ(dequantize_word(0x12345678u, whole).pair[1], dequantize_word(0x12345678u, rebuilt).pair[1]);
  }
}

TEST(NibbleOf, TakesTheHalfThatTheIndexSays) {
  EXPECT_EQ(nibble_of(0xa7, 0) & 0xf, 0x7u);
  EXPECT_EQ(nibble_of(0xa7, 1) & 0xf, 0xau);
  EXPECT_EQ(nibble_of(0xa7, 1001) & 0xf, 0xau);
}

}  // namespace
}  // namespace awq2trt
