// The warpgroup kernel's block shapes: one row per WarpgroupTile, read by the kernel (warpgroup_kernel.cu) and by the
// choice between them (choose_config.cpp). Nothing else knows these numbers.
#pragma once

#include <cstddef>

#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {

struct WarpgroupTraits {
  int warpgroups;    // along N, 64 weight rows each
  int block_tokens;  // 128 or 256
  int stages;        // of 64 k; one is being computed, one being released
  int speed;         // TFLOP/s where tiles fill an H100 (G = 128), fitted to measurements; only ratios matter

  constexpr int rows() const { return warpgroups * 64; }
  constexpr int tokens() const { return block_tokens; }
  constexpr int threads() const { return warpgroups * 128; }

  static constexpr int kStageK = 64;  // 128 bytes of a token's activations, which is what the copies can swizzle
  constexpr int x_bytes() const { return tokens() * kStageK * 2; }   // of a stage
  constexpr int code_bytes() const { return rows() * kStageK / 2; }  // of a stage
  constexpr int pipeline_bytes() const { return stages * (x_bytes() + code_bytes()); }

  // The finished tile also passes through shared memory, in the pipeline's place. A token's row is padded by 16 bytes,
  // so that 8 of them fall into different banks.
  constexpr int output_stride() const { return rows() * 2 + 16; }
  constexpr int output_bytes() const { return tokens() * output_stride(); }
  constexpr int tile_bytes() const { return pipeline_bytes() > output_bytes() ? pipeline_bytes() : output_bytes(); }

  // With two barriers for each stage, and room to align the stages.
  constexpr size_t shared_bytes() const { return 1024 + static_cast<size_t>(tile_bytes()) + 16 * stages; }
};

// Stages as measured, or as fit: more of the smaller tiles were not tried. 256 tokens share each dequantized weight;
// 128 x 192 and 128 x 128 are for prompts of fewer.
constexpr WarpgroupTraits kWarpgroupTraits[static_cast<int>(WarpgroupTile::kCount)] = {
    /* k128x128 */ {2, 128, 8, 482},
    /* k128x192 */ {3, 128, 7, 614},
    /* k256x64  */ {1, 256, 6, 532},
    /* k256x128 */ {2, 256, 5, 770},
};

constexpr const WarpgroupTraits& traits_of(WarpgroupTile tile) { return kWarpgroupTraits[static_cast<int>(tile)]; }

}  // namespace awq2trt
