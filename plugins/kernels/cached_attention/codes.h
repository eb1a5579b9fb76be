// INT8 codes of a cache to fp16 or bf16, four of a 32-bit word at a time; the same code on the host and the device.
//
// In:  a word of four signed bytes, the earlier code in the lower byte.
// Out: two registers of two numbers each, in the order of the codes, exact.
//
// As in w4a16_linear/dequantize.h no integer is converted: a byte becomes the low bits of a significand whose exponent
// makes one unit of its last place worth 1, and the offset that this adds is subtracted.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/device/half_pair.h"

namespace awq2trt {

constexpr float kLargestCode = 127.f;

struct WordOfCodes {
  uint32_t pair[2];  // (0,1), (2,3)
};

// Bytes 0 and 1, or 2 and 3, of a word as the lower bytes of two 16-bit numbers; `high` is the upper byte, four times.
AWQ2TRT_HOST_DEVICE uint32_t spread_bytes(uint32_t word, uint32_t high, int pair) {
  return select_bytes(word, high, pair == 0 ? 0x4140u : 0x4342u);
}

template <typename T>
AWQ2TRT_HOST_DEVICE WordOfCodes numbers_of_codes(uint32_t word);

// With its sign bit flipped, a byte is code + 128; with the exponent of 1024 in front of it, 1152 + code.
template <>
AWQ2TRT_HOST_DEVICE WordOfCodes numbers_of_codes<__half>(uint32_t word) {
  constexpr uint32_t kSigns = 0x80808080u, kExponent = 0x64646464u, kOffset = 0x6480u * kBothHalves;
  const auto pair_at = [&](int pair) {
    return bits_of(__hsub2(pair_of<__half2>(spread_bytes(word ^ kSigns, kExponent, pair)), pair_of<__half2>(kOffset)));
  };
  return {{pair_at(0), pair_at(1)}};
}

// bf16 has 7 bits of significand. The lower 7 bits of a byte, with the exponent of 128 in front, give 128 plus their
// value. The sign bit, worth -128, alone turns 128 into 256. The difference of the two is the code.
template <>
AWQ2TRT_HOST_DEVICE WordOfCodes numbers_of_codes<__nv_bfloat16>(uint32_t word) {
  constexpr uint32_t kExponent = 0x43434343u, kLower = 0xff7fu * kBothHalves, kSign = 0xff80u * kBothHalves;
  const auto pair_at = [&](int pair) {
    const uint32_t both = spread_bytes(word, kExponent, pair);
    return bits_of(__hsub2(pair_of<__nv_bfloat162>(both & kLower), pair_of<__nv_bfloat162>(both & kSign)));
  };
  return {{pair_at(0), pair_at(1)}};
}

}  // namespace awq2trt
