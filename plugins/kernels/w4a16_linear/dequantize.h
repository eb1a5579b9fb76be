// INT4 to fp16 or bf16, eight codes of a 32-bit word at a time; the same code on the host and the device.
//
// In:  a word of eight signed nibbles in the natural order: code i in bits 4i to 4i+3 (plugins/FORMAT.md).
// Out: four registers of two numbers each, code - zero, exact: the pairs (0,4), (1,5), (2,6), (3,7).
//
// A mask takes a nibble into the low bits of a significand whose exponent makes one unit of its last place worth 1 (or
// 1/16), so no integer is ever converted: the idea of Kim et al., "Who Says Elephants Can't Run: Bringing Large Scale
// MoE Models into Cloud Scale Production" (arXiv 2211.10017), section 3.2. Their weights are interleaved beforehand;
// ours keep the natural order, and the caller orders the activations to match the pairs.
//
// A signed nibble c is c + 8 with bit 3 flipped, so the flip rides along in the XOR that sets the exponent; zero points
// get the same flip, and the two offsets of 8 cancel out: (c ^ 8) - (z ^ 8) = c - z.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/device/half_pair.h"

namespace awq2trt {

constexpr uint32_t kSignFlip = 0x8;  // nibble c <-> c + 8

// (word & kMask) ^ kFlip. One LOP3 on the device; without this, the compiler makes two, one for each constant.
template <uint32_t kMask, uint32_t kFlip>
AWQ2TRT_HOST_DEVICE uint32_t masked_flip(uint32_t word) {
#ifdef __CUDA_ARCH__
  constexpr int kAndXor = (0xf0 & 0xcc) ^ 0xaa;  // truth table of (a & b) ^ c
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(word), "n"(kMask), "n"(kFlip), "n"(kAndXor));
  return result;
#else
  return (word & kMask) ^ kFlip;
#endif
}

// The zero point to subtract from the raw pairs: one of these per weight row and group.
template <typename T>
struct ZeroPoint;

template <>
struct ZeroPoint<__half> {
  uint32_t low;   // 1024 + z, both halves
  uint32_t high;  // -(64 + z), both halves

  // `nibble`: the signed zero point's 4 bits, with anything above them; 0 without zero points.
  AWQ2TRT_HOST_DEVICE static ZeroPoint from_nibble(uint32_t nibble) {
    // 0x6400 is 1024, whose last place is 1.
    return from_low(masked_flip<0xf, 0x6400 | kSignFlip>(nibble) * kBothHalves);
  }

  // Completes a zero point of which only `low` was kept.
  AWQ2TRT_HOST_DEVICE static ZeroPoint from_low(uint32_t low) {
    // 0xD400 is -64, whose last place is 1/16, so z goes 4 bits up.
    return {low, masked_flip<0xf0u * kBothHalves, 0xD400u * kBothHalves>(low << 4)};
  }
};

template <>
struct ZeroPoint<__nv_bfloat16> {
  uint32_t low;  // 128 + z, both halves

  AWQ2TRT_HOST_DEVICE static ZeroPoint from_nibble(uint32_t nibble) {
    // 0x4300 is 128, whose last place is 1: bf16 has 7 bits of significand.
    return from_low(masked_flip<0xf, 0x4300 | kSignFlip>(nibble) * kBothHalves);
  }

  AWQ2TRT_HOST_DEVICE static ZeroPoint from_low(uint32_t low) { return {low}; }
};

struct CodePairs {
  uint32_t pair[4];  // (0,4), (1,5), (2,6), (3,7)
};

// a * b + c where the result is exact, so that the host's two roundings do not differ from the device's one.
AWQ2TRT_HOST_DEVICE __half2 fma_exact(__half2 a, __half2 b, __half2 c) {
#ifdef __CUDA_ARCH__
  return __hfma2(a, b, c);
#else
  return __floats2half2_rn(__low2float(a) * __low2float(b) + __low2float(c),
                           __high2float(a) * __high2float(b) + __high2float(c));
#endif
}

AWQ2TRT_HOST_DEVICE CodePairs dequantize_word(uint32_t word, ZeroPoint<__half> zero) {
  // An odd nibble stays 4 bits up, where it counts 16 times what it should: 1024 + 16 u. Times 1/16 that is 64 + u,
  // which costs no more than the subtraction alone, since both are one fused operation.
  constexpr uint32_t kLowMask = 0x000f000fu, kLowFlip = 0x6408u * kBothHalves;
  constexpr uint32_t kHighMask = 0x00f000f0u, kHighFlip = 0x6480u * kBothHalves;
  constexpr uint32_t kSixteenth = 0x2c00u * kBothHalves;
  const __half2 low = pair_of<__half2>(zero.low), high = pair_of<__half2>(zero.high);
  const __half2 sixteenth = pair_of<__half2>(kSixteenth);
  const uint32_t upper = word >> 8;
  return {{
      bits_of(__hsub2(pair_of<__half2>(masked_flip<kLowMask, kLowFlip>(word)), low)),
      bits_of(fma_exact(pair_of<__half2>(masked_flip<kHighMask, kHighFlip>(word)), sixteenth, high)),
      bits_of(__hsub2(pair_of<__half2>(masked_flip<kLowMask, kLowFlip>(upper)), low)),
      bits_of(fma_exact(pair_of<__half2>(masked_flip<kHighMask, kHighFlip>(upper)), sixteenth, high)),
  }};
}

AWQ2TRT_HOST_DEVICE CodePairs dequantize_word(uint32_t word, ZeroPoint<__nv_bfloat16> zero) {
  // Four bits up would leave bf16's significand, so every nibble is shifted down.
  constexpr uint32_t kMask = 0x000f000fu, kFlip = 0x4308u * kBothHalves;
  const __nv_bfloat162 low = pair_of<__nv_bfloat162>(zero.low);
  const auto pair_at = [&](int shift) {
    return bits_of(__hsub2(pair_of<__nv_bfloat162>(masked_flip<kMask, kFlip>(word >> shift)), low));
  };
  return {{pair_at(0), pair_at(4), pair_at(8), pair_at(12)}};
}

// --- The two codes of a byte, in order ---
//
// This takes one byte permutation per pair instead of a quarter of a shift, but activations can stay in their order:
// the better choice for many tokens and few weights.

// The zero point to subtract from the raw pair of a byte.
template <typename T>
struct OrderedZeroPoint;

template <>
struct OrderedZeroPoint<__half> {
  uint32_t bits;  // -(1024 + z), -(64 + z): an odd code stays 4 bits up, as in dequantize_word()

  // As ZeroPoint::from_nibble().
  AWQ2TRT_HOST_DEVICE static OrderedZeroPoint from_nibble(uint32_t nibble) {
    constexpr uint32_t kBothPlaces = 0x00100001u;
    return {masked_flip<0xf, 0>(nibble) * kBothPlaces ^ (0xD480u << 16 | 0xE408u)};
  }
};

template <>
struct OrderedZeroPoint<__nv_bfloat16> {
  uint32_t bits;  // 128 + z, both halves

  AWQ2TRT_HOST_DEVICE static OrderedZeroPoint from_nibble(uint32_t nibble) {
    return {ZeroPoint<__nv_bfloat16>::from_nibble(nibble).low};
  }
};

// Codes 2 * byte and 2 * byte + 1 of a word. A lane always takes the same byte, so `byte_selector` is made once.
AWQ2TRT_HOST_DEVICE uint32_t byte_selector(uint32_t byte) { return 0x1111u * byte; }

AWQ2TRT_HOST_DEVICE uint32_t dequantize_byte(uint32_t word, uint32_t selector, OrderedZeroPoint<__half> zero) {
  constexpr uint32_t kMask = 0x00f0000fu, kFlip = 0x64806408u, kOneAndSixteenth = 0x2c003c00u;
  const uint32_t raw = masked_flip<kMask, kFlip>(select_bytes(word, word, selector));
  return bits_of(fma_exact(pair_of<__half2>(raw), pair_of<__half2>(kOneAndSixteenth), pair_of<__half2>(zero.bits)));
}

AWQ2TRT_HOST_DEVICE uint32_t dequantize_byte(uint32_t word, uint32_t selector, OrderedZeroPoint<__nv_bfloat16> zero) {
  // Takes both nibbles from the low bits, for bf16's short significand: the odd one from the shifted word.
  constexpr uint32_t kMask = 0x000f000fu, kFlip = 0x4308u * kBothHalves, kUpperFromSecond = 0x4400u;
  const uint32_t raw = masked_flip<kMask, kFlip>(select_bytes(word, word >> 4, selector | kUpperFromSecond));
  return bits_of(__hsub2(pair_of<__nv_bfloat162>(raw), pair_of<__nv_bfloat162>(zero.bits)));
}

// The nibble at `index` of a packed INT4 tensor, given the byte that holds it. Bits above it may be set.
AWQ2TRT_HOST_DEVICE uint32_t nibble_of(uint32_t byte, uint32_t index) { return byte >> (index & 1) * 4; }

}  // namespace awq2trt
