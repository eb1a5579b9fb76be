// Loads from global memory whose order or caching matters: in, an address; out, its bytes in registers or in the L2
// cache.
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

// 8 bytes, and 2, likewise.
template <typename T>
__device__ __forceinline__ uint2 load_8_now(const T* source) {
  uint2 v;
  asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(source));
  return v;
}
template <typename T>
__device__ __forceinline__ uint16_t load_2_now(const T* source) {
  uint16_t v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(source));
  return v;
}

// 8 bytes that another kernel writes, past the L1 cache: a later read fetches them again.
__device__ __forceinline__ int64_t load_fresh(const int64_t* source) {
  int64_t v;
  asm volatile("ld.global.cg.s64 %0, [%1];" : "=l"(v) : "l"(source) : "memory");
  return v;
}

// Requests the line of `source` into the L2 cache. Nothing waits for it.
__device__ __forceinline__ void prefetch_to_l2(const void* source) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(source));
}

// 16 bytes that nobody reads again: past the L1 cache, which is left to data that is read again.
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
