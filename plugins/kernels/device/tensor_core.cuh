// The tensor cores' instruction mma.sync m16n8k16 for one warp: in, fp16 or bf16 operands in the registers of its
// lanes; out, fp32 sums in theirs.
//
// Weights are the A operand (16 weight rows), activations the B operand (8 tokens). Lane 4g + t of the warp holds A of
// rows g and g + 8, B of token g, and C of rows g and g + 8 at tokens 2t and 2t + 1 (PTX ISA, "Matrix fragments for
// mma.m16n8k16 with floating point type"). A register may stand for any k, as long as A and B agree.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace awq2trt {

constexpr int kWarpSize = 32;
constexpr int kRowTile = 16;   // weight rows of one mma
constexpr int kTokenTile = 8;  // tokens of one mma

// c += a * b for 16 rows, 8 tokens, 16 k.
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                            __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace awq2trt
