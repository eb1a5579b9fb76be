// Pairs of 16-bit floats as the 32-bit registers that mma takes: casts between the two, the same on host and device.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace awq2trt {

#define AWQ2TRT_HOST_DEVICE __host__ __device__ __forceinline__

constexpr uint32_t kBothHalves = 0x00010001u;  // times a 16-bit value: that value in both halves of a register

template <typename Pair>
AWQ2TRT_HOST_DEVICE uint32_t bits_of(Pair pair) {
  static_assert(sizeof(Pair) == sizeof(uint32_t), "a pair is one register");
  union {
    Pair pair;
    uint32_t bits;
  } cast = {pair};
  return cast.bits;
}

template <typename Pair>
AWQ2TRT_HOST_DEVICE Pair pair_of(uint32_t bits) {
  union U {
    uint32_t bits;
    Pair pair;
    AWQ2TRT_HOST_DEVICE U(uint32_t b) : bits(b) {}
  } cast(bits);
  return cast.pair;
}

// Four bytes of the eight of `low` and `high`, one for each hexadecimal digit of `selector`, the lowest digit first.
AWQ2TRT_HOST_DEVICE uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, selector);
#else
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return result;
#endif
}

}  // namespace awq2trt
