// Which kernels compute a call: pure functions of the problem and the device.
#include <algorithm>
#include <iterator>
#include <limits>

#include "kernels/cached_attention/cached_attention.h"
#include "kernels/cached_attention/decode_shape.h"

namespace awq2trt {
namespace {

// From this many tokens on, blocks of queries share tiles of keys; with fewer, each row tile reads the keys itself. Not
// tuned.
constexpr int kPrefillTokens = 16;

// Fewer than half a block of queries leave the warpgroup kernel's products empty. Not tuned.
constexpr int kWarpgroupTokens = 64;

// Blocks per multiprocessor: as many as run at once. Not tuned: on an H100, Llama-3-8B's shape at 4,096 slots took 16.2
// us in the 33 splits that this gives, 16.2 in 24, 15.6 in 48; at 32,768 slots 55.6 us, 57.8 in 24, 70.5 in 48.
constexpr int kBlocksPerMultiprocessor = 2;

// No supported device has more multiprocessors (GH100 has 144, GB202 has 192).
constexpr int kMostMultiprocessors = 192;

constexpr size_t kAlignment = 256;  // of the parts of the workspace

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Whether the warpgroup kernel computes the problem. Its rows of the cache are numbered by an int.
bool fits_warpgroups(const AttentionProblem& p) {
  const bool plain = p.softcap == 0.f && !p.has_alibi && !p.has_visible_end && p.scale > 0.f;
  return plain && p.tokens >= kWarpgroupTokens && (p.head_dim == 64 || p.head_dim == 128) &&
         p.cache_type == CacheType::kAsActivations &&
         int64_t{p.batch} * p.kv_heads * p.capacity <= std::numeric_limits<int32_t>::max();
}

AttentionKernel kernel_for(const AttentionProblem& problem) {
  if (problem.tokens * problem.heads_per_kv() <= kDecodeRows) return AttentionKernel::kDecode;
  return problem.tokens < kPrefillTokens ? AttentionKernel::kDecodeTiled : AttentionKernel::kPrefill;
}

// Blocks that share the slots of a row tile: as many as fill the device, each with a tile for every warp.
int splits_for(const AttentionProblem& problem, int multiprocessors) {
  const int slots = problem.window > 0 ? std::min(problem.capacity, problem.window + problem.tokens) : problem.capacity;
  const int row_tiles = ceil_div(problem.tokens * problem.heads_per_kv(), kDecodeRows);
  const int blocks = problem.batch * problem.kv_heads * row_tiles;
  const int wanted = ceil_div(kBlocksPerMultiprocessor * multiprocessors, blocks);
  return std::max(1, std::min(wanted, ceil_div(slots, kDecodeWarps * kDecodeSlotTile)));
}

size_t workspace_bytes(const AttentionProblem& problem, AttentionKernel kernel, int splits) {
  const WorkspaceLayout layout(problem, kernel, splits);
  return layout.bytes;
}

}  // namespace

WorkspaceLayout::WorkspaceLayout(const AttentionProblem& problem, AttentionKernel kernel, int splits) {
  const size_t rows = static_cast<size_t>(problem.batch) * problem.tokens * problem.heads;
  const bool prepared = kernel != AttentionKernel::kDecode;
  const size_t parts = is_prefill(kernel) || splits == 1 ? 0 : rows * splits;
  partials = prepared ? aligned(rows * problem.head_dim * 2) : 0;
  maxima = partials + aligned(parts * problem.head_dim * sizeof(float));
  bytes = maxima + aligned(parts * sizeof(float) * 2);
}

const char* check_validity(const AttentionProblem& problem) {
  if (problem.batch < 0 || problem.tokens < 0) return "batch and tokens cannot be negative";
  if (problem.batch > 65535 || problem.tokens > 65535) return "batch and tokens must be at most 65535";
  if (problem.heads < 1 || problem.kv_heads < 1) return "there must be at least one head";
  if (problem.heads % problem.kv_heads != 0) return "the number of heads must be a multiple of key-value heads";
  if (problem.heads > 65535) return "there must be at most 65535 heads";
  if (problem.capacity < 1) return "the cache must hold at least one position";
  const int dims[] = {64, 80, 96, 112, 128, 256};
  if (std::find(std::begin(dims), std::end(dims), problem.head_dim) == std::end(dims)) {
    return "head sizes with kernels are 64, 80, 96, 112, 128 and 256";
  }
  if (problem.rotary_dim < 0 || problem.rotary_dim > problem.head_dim || problem.rotary_dim % 2 != 0) {
    return "the rotated channels must be an even number, at most the head size";
  }
  if (problem.window < 0) return "the window cannot be negative";
  if (!(problem.softcap >= 0.f) || !(problem.clip >= 0.f)) return "softcap and clip cannot be negative";
  if (problem.has_visible_end && (problem.has_alibi || problem.softcap > 0.f)) {
    return "with ends of what tokens see there are neither slopes nor a softcap";
  }
  if (problem.has_norms && !(problem.norm_eps > 0.f)) return "norms need a positive epsilon";
  return nullptr;
}

AttentionConfig choose_config(const AttentionProblem& problem, const Device& device) {
  AttentionConfig config = {};
  config.kernel = kernel_for(problem);
  if (config.kernel == AttentionKernel::kPrefill && device.wgmma && fits_warpgroups(problem))
    config.kernel = AttentionKernel::kPrefillHopper;
  config.splits = is_prefill(config.kernel) ? 1 : splits_for(problem, device.multiprocessors);
  config.overlap = can_overlap(device);
  config.workspace_bytes = workspace_bytes(problem, config.kernel, config.splits);
  return config;
}

size_t workspace_bound(const AttentionProblem& problem) {
  // Decoding needs the most workspace with the most splits, prefill with the most tokens; every other case needs no
  // more than the larger of the two.
  AttentionProblem few = problem;
  size_t most = 0;
  for (int tokens = 1; tokens <= std::min(problem.tokens, kPrefillTokens - 1); ++tokens) {
    few.tokens = tokens;
    most = std::max(most, workspace_bytes(few, kernel_for(few), splits_for(few, kMostMultiprocessors)));
  }
  return std::max(most, workspace_bytes(problem, AttentionKernel::kPrefill, 1));
}

}  // namespace awq2trt
