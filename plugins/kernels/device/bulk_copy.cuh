// Copies of whole tiles from global to shared memory that one thread starts and the hardware does (TMA), and the
// barriers that say when they are complete (mbarrier). For compute capability 9.0 and later.
//
// A barrier has phases that follow each other; wait_for_phase() is told the lowest bit of the phase's number. It is 8
// bytes of shared memory. Addresses are those of shared memory, as shared_address() gives them.
#pragma once

#include <cstdint>

#include "kernels/device/tensor_map.h"

namespace awq2trt {

constexpr int kBarrierBytes = 8;
constexpr int kSwizzleBytes = 1024;  // swizzled tiles start at multiples of it

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A phase ends after `arrivals`, and when all expected bytes are there.
__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialized barriers known to copies; the block's other threads need __syncthreads() in addition.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and expects copies of so many bytes in this phase.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wait_for_phase(uint32_t barrier, int lowest_bit) {
  asm volatile(
      "{ .reg .pred done; AGAIN_%=: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1; "
      "@!done bra AGAIN_%=; }" ::"r"(barrier),
      "r"(lowest_bit)
      : "memory");
}

// Makes what this thread wrote to shared memory known to products and copies; the others need a barrier in addition.
__device__ __forceinline__ void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Starts to copy the tile at `column` and `row` of a matrix. What lies outside of the matrix becomes 0 and counts among
// the bytes, too, but is slower than what lies inside.
__device__ __forceinline__ void copy_tile(uint32_t target, const CUtensorMap* map, int column, int row,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          target),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

}  // namespace awq2trt
