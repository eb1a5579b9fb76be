// codes.h on the CPU: the same code that the kernels run, for all codes.
#include "kernels/cached_attention/codes.h"

#include <gtest/gtest.h>

namespace awq2trt {
namespace {

float low_of(uint32_t pair, __half) { return __low2float(pair_of<__half2>(pair)); }
float high_of(uint32_t pair, __half) { return __high2float(pair_of<__half2>(pair)); }
float low_of(uint32_t pair, __nv_bfloat16) { return __low2float(pair_of<__nv_bfloat162>(pair)); }
float high_of(uint32_t pair, __nv_bfloat16) { return __high2float(pair_of<__nv_bfloat162>(pair)); }

template <typename T>
class Codes : public testing::Test {};
using Types = testing::Types<__half, __nv_bfloat16>;
TYPED_TEST_SUITE(Codes, Types);

TYPED_TEST(Codes, LiteralWord) {
  const WordOfCodes numbers = numbers_of_codes<TypeParam>(0x81ff017fu);  // 127, 1, -1, -127
  EXPECT_EQ(low_of(numbers.pair[0], TypeParam{}), 127.f);
  EXPECT_EQ(high_of(numbers.pair[0], TypeParam{}), 1.f);
  EXPECT_EQ(low_of(numbers.pair[1], TypeParam{}), -1.f);
  EXPECT_EQ(high_of(numbers.pair[1], TypeParam{}), -127.f);
}

TYPED_TEST(Codes, EveryCodeInEveryPlace) {
  for (int code = -128; code < 128; ++code) {
    for (int place = 0; place < 4; ++place) {
      const uint32_t others = 0x5a3c69f1u;  // the neighbours' values must not matter
      const uint32_t byte = static_cast<uint32_t>(code) & 0xffu;
      const uint32_t word = (others & ~(0xffu << (8 * place))) | byte << (8 * place);
      const uint32_t pair = numbers_of_codes<TypeParam>(word).pair[place / 2];
      ASSERT_EQ(place % 2 == 0 ? low_of(pair, TypeParam{}) : high_of(pair, TypeParam{}), static_cast<float>(code));
    }
  }
}

}  // namespace
}  // namespace awq2trt
