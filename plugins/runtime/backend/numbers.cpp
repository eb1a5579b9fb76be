// See numbers.h.
#include "backend/numbers.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/vectors.h"

namespace awq2trt {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// IEEE 754: 5 bits of exponent, 10 of fraction. Without branches, so that compilers make vectors of it.
inline float from_half(uint16_t half) {
  const uint32_t bits = half, sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
  const uint32_t normal = rest + (112u << 23);                             // 127 - 15
  const uint32_t special = rest | 0x7f800000u;                             // infinity, NaN
  const float fraction = from_bits(0x3f000000u | (bits & 0x3ffu)) - 0.5f;  // units of 2^-24, as 0.5 has them
  uint32_t small = 0;
  std::memcpy(&small, &fraction, sizeof(small));
  const uint32_t finite = rest < (1u << 23) ? small : normal;
  return from_bits(sign | (rest >= (31u << 23) ? special : finite));
}

// Rounds `bits` to a multiple of 2^dropped, of two to the even one, and divides.
inline uint32_t rounded(uint32_t bits, int dropped) {
  const uint32_t half = 1u << (dropped - 1);
  return (bits + half - 1 + ((bits >> dropped) & 1)) >> dropped;
}

inline uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (rest >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 2^16 and above
  if (rest < 0x33000000u) return static_cast<uint16_t>(sign);             // below 2^-25
  if (rest < 0x38800000u) {                                               // below 2^-14: units of 2^-24
    const auto shift = static_cast<int>(126u - (rest >> 23));             // 14 to 24
    return static_cast<uint16_t>(sign | rounded((rest & 0x7fffffu) | 0x800000u, shift));
  }
  return static_cast<uint16_t>(sign | rounded(rest - (112u << 23), 13));  // 127 - 15
}

inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded(bits, 16));
}

}  // namespace

size_t bytes_of(Number number) {
  if (number == Number::kInt8) return sizeof(int8_t);
  if (number == Number::kInt64) return sizeof(int64_t);
  return number == Number::kFloat32 ? sizeof(float) : sizeof(uint16_t);
}

AWQ2TRT_VECTORS void widen(const void* stored, Number number, size_t count, float* result) {
  if (number == Number::kFloat32) {
    std::memcpy(result, stored, count * sizeof(float));
    return;
  }
  const auto* const halves = static_cast<const uint16_t*>(stored);
  if (number == Number::kFloat16) {
    for (size_t i = 0; i < count; ++i) result[i] = from_half(halves[i]);
  } else {
    for (size_t i = 0; i < count; ++i) result[i] = from_bits(uint32_t{halves[i]} << 16);
  }
}

void narrow(const float* wide, Number number, size_t count, void* stored) {
  if (number == Number::kFloat32) {
    std::memcpy(stored, wide, count * sizeof(float));
    return;
  }
  if (number == Number::kInt64) {
    std::copy(wide, wide + count, static_cast<int64_t*>(stored));
    return;
  }
  auto* const halves = static_cast<uint16_t*>(stored);
  const auto convert = number == Number::kFloat16 ? to_half : to_bfloat16;
  for (size_t i = 0; i < count; ++i) halves[i] = convert(wide[i]);
}

}  // namespace awq2trt
