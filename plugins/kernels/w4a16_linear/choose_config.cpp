// Which kernel computes a problem on a device, and how the work is cut. Host-only and pure: the CPU tests cover it, and
// tuning changes only this file.
#include <algorithm>
#include <climits>

#include "kernels/w4a16_linear/kernel_params.cuh"
#include "kernels/w4a16_linear/tile_shapes.h"
#include "kernels/w4a16_linear/w4a16_linear.h"
#include "kernels/w4a16_linear/warpgroup_shapes.h"

namespace awq2trt {
namespace {

constexpr int kRowTile = 16;
constexpr int kMaxDecodeTokens = 8;  // one mma tile of tokens: more would be a second pass over the dequantized codes
// 2 blocks of 8 warps per multiprocessor: 16 warps x 4 units of 1 KiB in flight cover the memory's latency
// (decode_kernel.cu), and one block starts up while the other works.
constexpr int kDecodeWarps = 8;
constexpr int kDecodeBlocks = 2;
constexpr int kMaxTokensOfLoneBlock = 2;
constexpr int kMinOverlapSm = 90;
// Limits within which the decode-once kernel was the faster one on an H100: for 5120 -> 5120, but not for 4096 -> 6144
// or 8192 -> 4096.
constexpr int kMaxOnceK = 5120;             // with more than one block per multiprocessor
constexpr int kMaxOnceHalfBlocks = 5;       // a multiprocessor
constexpr int kCodesPerVector = 32;         // rows of codes at multiples of 16 bytes
constexpr int kReservedSharedBytes = 1024;  // of each block, by CUDA
constexpr int kMaxMultiprocessors = 192;    // of any supported device (RTX PRO 6000: 188), for workspace_bound()
constexpr int kMinSplitK = 512;             // a shorter slice of K does not pay for writing and adding its sums
constexpr int kMaxSplits = 16;
constexpr int kMaxSplitBlocks = 2;   // per multiprocessor; with more, K need not be split to keep it busy
constexpr int kSplitMultiple = 128;  // slices start at whole pipeline stages

constexpr int kWarpgroupFeatures = 8;    // y's rows at multiples of 16 bytes
constexpr int kMinWarpgroupTokens = 65;  // with 64 the tile kernel was the faster one for all of 12 layers

int ceil_div(int a, int b) { return (a - 1) / b + 1; }
int64_t ceil_div(int64_t a, int b) { return (a - 1) / b + 1; }

// A lane's 16 bytes of codes must lie in one group.
bool groups_fit_loads(const GemmProblem& p) { return p.group_size % 32 == 0 || p.group_size >= p.k; }

// Weight rows of a decode block if each multiprocessor is to hold `blocks` of them: as many as give every
// multiprocessor its blocks exactly once, so that all of them finish together, or fewer if their sums would not fit; 0
// if not even 16 rows fit.
int decode_rows_per_block(const GemmProblem& p, const Device& device, int blocks) {
  const int rows = ceil_div(ceil_div(p.n, blocks * device.multiprocessors), kRowTile) * kRowTile;
  const auto available = static_cast<size_t>(device.max_shared_bytes / blocks);
  const size_t without_sums = DecodeShared(p.m, p.k, 0, kDecodeWarps).bytes;
  if (without_sums > available) return 0;
  const size_t tile_sums = DecodeShared(p.m, p.k, kRowTile, kDecodeWarps).bytes - without_sums;
  return std::min(rows, static_cast<int>((available - without_sums) / tile_sums) * kRowTile);
}

// The decode kernel's rows per block, or 0 where the tile kernel is the better choice. Shared memory decides, since it
// holds all activations of a block. With half the blocks, the loads in flight no longer cover the memory's latency; at
// one or two tokens this still beats the tile kernel.
int choose_decode_rows(const GemmProblem& p, const Device& device) {
  if (p.m > kMaxDecodeTokens) return 0;
  const int rows = decode_rows_per_block(p, device, kDecodeBlocks);
  return rows > 0 || p.m > kMaxTokensOfLoneBlock ? rows : decode_rows_per_block(p, device, 1);
}

// Whether all blocks of a launch, one per tile of 16 rows with all of the tile's weights, fit the device at once. Only
// where launches overlap: the kernel saves time while the previous one is still running.
bool fits_at_once(const GemmProblem& p, const Device& device) {
  const bool groups_fit_units = p.group_size % DecodeOnceShared::kStep == 0 || p.group_size >= p.k;
  if (p.m > kMaxDecodeTokens || device.sm < kMinOverlapSm || p.k % kCodesPerVector != 0 || !groups_fit_units)
    return false;
  const int64_t tiles = ceil_div(p.n, kRowTile);
  if (p.k > kMaxOnceK && tiles > device.multiprocessors) return false;
  const size_t block_bytes = DecodeOnceShared(p.m, p.k).bytes + kReservedSharedBytes;
  const int blocks = static_cast<int>((device.max_shared_bytes + kReservedSharedBytes) / block_bytes);
  return tiles <= int64_t{std::min(blocks, DecodeOnceShared::kMaxBlocks)} * device.multiprocessors &&
         2 * tiles <= int64_t{kMaxOnceHalfBlocks} * device.multiprocessors;
}

KernelConfig decode_config(Kernel kernel, int rows_per_block) {
  KernelConfig config = {};
  config.kernel = kernel;
  config.rows_per_block = rows_per_block;
  config.warps = kDecodeWarps;
  config.splits = 1;
  return config;
}

int64_t tile_count(const GemmProblem& p, const TileTraits& tile) {
  return ceil_div(int64_t{p.m}, tile.tokens()) * ceil_div(p.n, tile.rows());
}

int k_per_split(const GemmProblem& p, int splits) {
  return ceil_div(ceil_div(p.k, splits), kSplitMultiple) * kSplitMultiple;
}

// Time of the busiest multiprocessor plus that of adding the splits, in H100 microseconds: a model that ranks
// candidates, checked with tools/tune_kernels.py, and no prediction.
double estimated_us(const GemmProblem& p, const TileTraits& tile, int splits, const Device& device) {
  constexpr double kMultiprocessors = 132, kLoneBlockSpeed = 0.64, kAddLaunchUs = 3, kBytesPerUs = 3e6;
  const int64_t blocks = ceil_div(tile_count(p, tile) * splits, device.multiprocessors);  // of the busiest
  const double block_flops = 2.0 * tile.tokens() * tile.rows() * k_per_split(p, splits);
  const double speed = tile.speed * 1e6 / kMultiprocessors * (blocks < tile.blocks ? kLoneBlockSpeed : 1.0);
  const double add_us = splits == 1 ? 0.0 : kAddLaunchUs + 2.0 * sizeof(float) * splits * p.m * p.n / kBytesPerUs;
  return static_cast<double>(blocks) * block_flops / speed + add_us;
}

// The same for the warpgroup kernel, one block of which fills a multiprocessor. Blocks of a lone wave take less time,
// since they share the memory and the power with fewer. Of 144 problems measured on an H100 (12 layers, 33 to 2,048
// tokens; tools/tune_kernels.py times them), the choice by both models was 1.0 % slower than the best in the geometric
// mean, and 16 % at most.
double estimated_us(const GemmProblem& p, const WarpgroupTraits& tile, const Device& device) {
  constexpr double kMultiprocessors = 132, kLoneBlockTime = 0.8;
  const int64_t tiles = ceil_div(int64_t{p.m}, tile.tokens()) * ceil_div(p.n, tile.rows());
  const int64_t blocks = ceil_div(tiles, device.multiprocessors);  // of the busiest
  const double block_us = 2.0 * tile.tokens() * tile.rows() * p.k * kMultiprocessors / (tile.speed * 1e6);
  return static_cast<double>(blocks) * block_us * (blocks == 1 ? kLoneBlockTime : 1.0);
}

// A choice, and the time that a model ranks it by.
struct RankedConfig {
  KernelConfig config;
  double us;
};

RankedConfig tile_config(const GemmProblem& p, const Device& device) {
  RankedConfig best = {};
  for (int i = 0; i < static_cast<int>(TileShape::kCount); ++i) {
    const TileTraits& tile = kTileTraits[i];
    if (tile.shared_bytes() > static_cast<size_t>(device.max_shared_bytes) || tile.min_sm > device.sm) continue;
    for (int splits = 1; splits == 1 || (splits <= std::min(p.k / kMinSplitK, kMaxSplits) &&
                                         splits * tile_count(p, tile) <= kMaxSplitBlocks * device.multiprocessors);
         ++splits) {
      const double us = estimated_us(p, tile, splits, device);
      if (best.us > 0.0 && us >= best.us) continue;
      best.us = us;
      best.config.tile = static_cast<TileShape>(i);
      best.config.splits = splits;
    }
  }
  KernelConfig& config = best.config;
  config.kernel = Kernel::kTile;
  config.k_per_split = k_per_split(p, config.splits);
  config.splits = ceil_div(p.k, config.k_per_split);  // rounding up may have made the last ones empty
  config.workspace_bytes = config.splits == 1 ? 0 : sizeof(float) * config.splits * p.m * p.n;
  return best;
}

// `us` is 0 where the warpgroup kernel cannot compute the problem.
RankedConfig warpgroup_config(const GemmProblem& p, const Device& device) {
  RankedConfig best = {};
  const bool possible =
      device.wgmma && p.m >= kMinWarpgroupTokens && p.k % kCodesPerVector == 0 && p.n % kWarpgroupFeatures == 0;
  if (!possible) return best;
  for (int i = 0; i < static_cast<int>(WarpgroupTile::kCount); ++i) {
    const WarpgroupTraits& tile = kWarpgroupTraits[i];
    if (tile.shared_bytes() > static_cast<size_t>(device.max_shared_bytes)) continue;
    const double us = estimated_us(p, tile, device);
    if (best.us > 0.0 && us >= best.us) continue;
    best.us = us;
    best.config.warpgroup_tile = static_cast<WarpgroupTile>(i);
  }
  best.config.kernel = Kernel::kWarpgroup;
  best.config.tile = TileShape::k128x128;
  best.config.splits = 1;
  best.config.k_per_split = k_per_split(p, 1);
  return best;
}

KernelConfig many_tokens_config(const GemmProblem& p, const Device& device) {
  const RankedConfig tile = tile_config(p, device), warpgroup = warpgroup_config(p, device);
  return warpgroup.us > 0.0 && warpgroup.us < tile.us ? warpgroup.config : tile.config;
}

}  // namespace

const char* check_validity(const GemmProblem& p) {
  constexpr int kMaxK = 1 << 20;  // GroupOfChunk divides numbers below 2^15 of 32 codes
  if (p.m < 0) return "the number of tokens M is negative";
  if (p.n < 1) return "the number of output features N must be at least 1";
  static_assert(kFeaturesMultiple == 8, "the message says so");
  if (p.k < 1 || p.k % kFeaturesMultiple != 0) return "the number of input features K must be a positive multiple of 8";
  if (p.k > kMaxK) return "the number of input features K must be at most 1048576";
  if (p.group_size < 1) return "group_size must be at least 1";
  if (p.dtype != DataType::kHalf && p.dtype != DataType::kBFloat16) return "activations must be fp16 or bf16";
  if (int64_t{p.m} * p.n > int64_t{INT_MAX} * 8) return "M x N is beyond 2^34 outputs";
  return nullptr;
}

KernelConfig choose_config(const GemmProblem& problem, const Device& device) {
  if (problem.m == 0 || !groups_fit_loads(problem)) {
    KernelConfig config = {};
    config.kernel = Kernel::kAnyGroup;
    config.splits = 1;
    return config;
  }
  KernelConfig config = {};
  if (fits_at_once(problem, device)) {
    config = decode_config(Kernel::kDecodeOnce, kRowTile);
  } else if (const int rows = choose_decode_rows(problem, device); rows > 0) {
    config = decode_config(Kernel::kDecode, rows);
  } else {
    config = many_tokens_config(problem, device);
  }
  config.overlap = device.sm >= kMinOverlapSm;
  return config;
}

size_t workspace_bound(const GemmProblem& problem) {
  // With s splits of t tiles, s * t <= kMaxSplitBlocks * multiprocessors, and t tiles hold at least M * N outputs.
  size_t bound = 0;
  const int64_t splits = std::min(problem.k / kMinSplitK, kMaxSplits);
  if (splits < 2 || !groups_fit_loads(problem)) return 0;
  for (const TileTraits& tile : kTileTraits) {
    const int64_t by_device = int64_t{kMaxSplitBlocks} * kMaxMultiprocessors * tile.tokens() * tile.rows();
    const int64_t by_problem = splits * problem.m * problem.n;
    bound = std::max(bound, sizeof(float) * static_cast<size_t>(std::min(by_device, by_problem)));
  }
  return bound;
}

}  // namespace awq2trt
