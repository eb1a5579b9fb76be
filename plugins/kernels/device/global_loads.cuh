// Loads from global memory whose order or caching matters: in, an address; out, its 2, 4 or 16 bytes in registers.
#pragma once

#include <cstdint>

namespace awq2trt {

// 16 bytes, in program order with the other loads below.
template <typename T>
__device__ __forceinline__ uint4 load_now(const T* source) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(source));
  return v;
}

// 16 bytes that nobody reads again: past the L1 cache, where what is read again stays.
__device__ __forceinline__ uint4 load_once(const uint8_t* source) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(source));
  return v;
}

__device__ __forceinline__ uint32_t load_word(const uint8_t* source) {
  return __ldcs(reinterpret_cast<const uint32_t*>(source));
}

__device__ __forceinline__ uint32_t load_scale(const uint8_t* source) {
  return __ldg(reinterpret_cast<const unsigned short*>(source));
}

}  // namespace awq2trt
