// The tile kernel's block shapes: one row per TileShape, read by the kernel (tile_kernel.cu) and by the choice between
// them (choose_config.cpp). Nothing else knows these numbers.
#pragma once

#include <cstddef>

#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {

struct TileTraits {
  int row_warps;    // warps along N
  int token_warps;  // warps along M
  int k_warps;      // warps that share a tile and split its k
  int row_tiles;    // 16-row mma tiles of a warp
  int token_tiles;  // 8-token mma tiles of a warp
  int block_k;      // k of a pipeline stage
  int stages;       // pipeline stages, one of them being computed
  int token_group;  // 8-token mma tiles whose activations are loaded ahead together
  int blocks;       // blocks per multiprocessor that the compiler leaves registers for
  int min_sm;       // lowest compute capability it is compiled for
  int speed;        // TFLOP/s where tiles fill an H100 (G = 128), fitted to measurements; only ratios matter

  constexpr int rows() const { return row_warps * row_tiles * 16; }
  constexpr int tokens() const { return token_warps * token_tiles * 8; }
  constexpr int threads() const { return row_warps * token_warps * k_warps * 32; }
  constexpr int chunks() const { return block_k / 32; }  // of 32 codes, in a stage and row

  constexpr size_t x_bytes() const { return size_t{2} * tokens() * block_k; }
  constexpr size_t code_bytes() const { return size_t{1} * rows() * block_k / 2; }
  constexpr size_t scale_bytes() const { return size_t{8} * rows() * chunks(); }  // a ScaleAndZero per chunk
  constexpr size_t pipeline_bytes() const { return stages * (x_bytes() + code_bytes()) + 2 * scale_bytes(); }

  // The finished tile also passes through shared memory, in the pipeline's place. Its rows are padded by 4 floats, so
  // that a warp's 4 tokens x 8 rows fall into 32 different banks.
  constexpr int sum_stride() const { return rows() + 4; }
  constexpr size_t sum_bytes() const { return size_t{4} * tokens() * sum_stride(); }
  constexpr size_t shared_bytes() const { return pipeline_bytes() > sum_bytes() ? pipeline_bytes() : sum_bytes(); }
};

// Few tokens: memory sets the time, so stages are long (64 bytes of each row) and warps split k to have enough in
// flight. From 128 tokens on, the tensor cores set it, together with the instructions that feed them: a warp then takes
// few weight rows and many tokens, since dequantizing costs more instructions than loading activations does. Token
// groups are as large as registers allow. The shapes were chosen by measurement.
constexpr TileTraits kTileTraits[static_cast<int>(TileShape::kCount)] = {
    /* k16x64   */ {2, 1, 4, 2, 2, 128, 4, 2, 2, 80, 95},
    /* k16x128  */ {4, 1, 2, 2, 2, 128, 4, 2, 2, 80, 107},
    /* k16x192  */ {6, 1, 2, 2, 2, 128, 4, 2, 1, 80, 96},
    /* k32x128  */ {4, 1, 2, 2, 4, 128, 4, 2, 2, 80, 195},
    /* k64x64   */ {2, 1, 2, 2, 8, 128, 3, 4, 3, 80, 259},
    /* k64x128  */ {4, 1, 2, 2, 8, 128, 3, 2, 1, 80, 250},
    /* k64x192  */ {6, 1, 2, 2, 8, 128, 4, 4, 1, 90, 276},
    /* k128x128 */ {4, 1, 1, 2, 16, 64, 4, 2, 2, 80, 296},
};

constexpr const TileTraits& traits_of(TileShape shape) { return kTileTraits[static_cast<int>(shape)]; }

}  // namespace awq2trt
