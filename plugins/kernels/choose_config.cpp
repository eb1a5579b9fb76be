// Which kernel computes a problem on a device, and how the work is cut. Host-only and pure: the CPU tests hold it, and a
// change of heart about tuning is a change of this file.
#include <algorithm>
#include <climits>

#include "kernel_params.cuh"
#include "tile_shapes.h"
#include "w4a16_linear.h"

namespace awq2trt {
namespace {

constexpr int kMaxDecodeTokens = 8;      // one mma tile of tokens: more would be a second pass over the dequantized codes
constexpr int kDecodeWarps = 8;          // of a block, and two blocks a multiprocessor: 16 warps x 4 units of 1 KiB in flight
constexpr int kDecodeBlocks = 2;         // cover the memory's latency, and one block starts up while the other works
constexpr int kMaxMultiprocessors = 192; // of any supported device (RTX PRO 6000: 188), for workspace_bound()
constexpr int kMinSplitK = 512;          // a shorter slice of K does not pay for writing and adding its sums
constexpr int kMaxSplits = 16;
constexpr int kSplitMultiple = 128;      // slices start at whole pipeline stages

int ceil_div(int a, int b) { return (a - 1) / b + 1; }
int64_t ceil_div(int64_t a, int b) { return (a - 1) / b + 1; }

// A lane's 16 bytes of codes must lie in one group.
bool groups_fit_loads(const GemmProblem& p) { return p.group_size % 32 == 0 || p.group_size >= p.k; }

// Rows that give every multiprocessor its blocks once, so that all of them finish together.
int decode_rows_per_block(const GemmProblem& p, const Device& device) {
  return ceil_div(ceil_div(p.n, kDecodeBlocks * device.multiprocessors), 16) * 16;
}

bool decode_fits(const GemmProblem& p, const Device& device) {
  const DecodeShared shared(p.m, p.k, decode_rows_per_block(p, device), kDecodeWarps);
  return p.m <= kMaxDecodeTokens && shared.bytes <= static_cast<size_t>(device.max_shared_bytes);
}

KernelConfig decode_config(const GemmProblem& p, const Device& device) {
  KernelConfig config = {};
  config.kernel = Kernel::kDecode;
  config.rows_per_block = decode_rows_per_block(p, device);
  config.warps = kDecodeWarps;
  config.splits = 1;
  return config;
}

int64_t tile_count(const GemmProblem& p, const TileTraits& tile) {
  return ceil_div(int64_t{p.m}, tile.tokens()) * ceil_div(p.n, tile.rows());
}

// Time of the busiest multiprocessor: how many tiles it gets, times their size, over the speed of that shape.
int64_t busiest_multiprocessor(const GemmProblem& p, const TileTraits& tile, const Device& device) {
  constexpr int64_t kScale = 1 << 10;
  return ceil_div(tile_count(p, tile), device.multiprocessors) * tile.tokens() * tile.rows() * kScale / tile.speed;
}

int tile_splits(const GemmProblem& p, const TileTraits& tile, const Device& device) {
  const int64_t idle_factor = device.multiprocessors / tile_count(p, tile);
  const int64_t splits = std::min<int64_t>({idle_factor, p.k / kMinSplitK, kMaxSplits});
  return static_cast<int>(std::max<int64_t>(splits, 1));
}

TileShape choose_tile(const GemmProblem& p, const Device& device) {
  TileShape best = TileShape::k16x128;
  int64_t best_time = INT64_MAX;
  for (int i = 0; i < static_cast<int>(TileShape::kCount); ++i) {
    const TileTraits& tile = kTileTraits[i];
    if (tile.shared_bytes() > static_cast<size_t>(device.max_shared_bytes)) continue;
    const int64_t time = busiest_multiprocessor(p, tile, device);
    if (time <= best_time) {  // of equals the larger, which reads less
      best = static_cast<TileShape>(i);
      best_time = time;
    }
  }
  return best;
}

KernelConfig tile_config(const GemmProblem& p, const Device& device) {
  KernelConfig config = {};
  config.kernel = Kernel::kTile;
  config.tile = choose_tile(p, device);
  const int splits = tile_splits(p, traits_of(config.tile), device);
  config.k_per_split = ceil_div(ceil_div(p.k, splits), kSplitMultiple) * kSplitMultiple;
  config.splits = ceil_div(p.k, config.k_per_split);  // rounding up may have made the last ones empty
  config.workspace_bytes = config.splits == 1 ? 0 : sizeof(float) * config.splits * p.m * p.n;
  return config;
}

}  // namespace

const char* check_validity(const GemmProblem& p) {
  constexpr int kMaxK = 1 << 20;  // GroupOfChunk divides numbers below 2^15 of 32 codes
  if (p.m < 0) return "the number of tokens M is negative";
  if (p.n < 1) return "the number of output features N must be at least 1";
  if (p.k < 1 || p.k % 8 != 0) return "the number of input features K must be a positive multiple of 8";
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
  KernelConfig config = decode_fits(problem, device) ? decode_config(problem, device) : tile_config(problem, device);
  config.overlap = device.sm >= 90;
  return config;
}

size_t workspace_bound(const GemmProblem& problem) {
  // With s splits of t tiles, s * t <= multiprocessors, and t tiles hold at least M * N outputs.
  size_t bound = 0;
  const int64_t splits = std::min(problem.k / kMinSplitK, kMaxSplits);
  if (splits < 2 || !groups_fit_loads(problem)) return 0;
  for (const TileTraits& tile : kTileTraits) {
    const int64_t by_device = int64_t{kMaxMultiprocessors} * tile.tokens() * tile.rows();
    const int64_t by_problem = splits * problem.m * problem.n;
    bound = std::max(bound, sizeof(float) * static_cast<size_t>(std::min(by_device, by_problem)));
  }
  return bound;
}

}  // namespace awq2trt
