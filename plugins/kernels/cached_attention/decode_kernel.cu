// Attention of few queries, where reading the cache takes all the time.
//
// - A block owns 8 rows (pairs of a new token and one of the query heads that share a key-value head) and a range of
//   slots: `splits` blocks share the slots that a row tile sees, in equal pieces of whole warp tiles. How many of them
//   have work depends on the position, which only the device knows; the others return at once.
// - A warp takes tiles of 16 slots in turn, whose keys and values it loads straight into the registers of mma.sync
//   (decode_tile.cuh). Nothing passes through shared memory, and the loads of the next keys are under way while values
//   are multiplied.
// - Queries are rows of the A operand. Rows 8 to 15 of it are zero: the tensor cores have time for them.
// - The block requests its slots into the L2 cache before it waits for the previous kernel: their latency passes while
//   the projection is still being computed.
// - Softmax is computed on the way: each warp keeps the largest score and the sum of weights of its slots. Warps are
//   combined in shared memory and splits in combine_kernel, always in the same order.
#include "kernels/cached_attention/decode_tile.cuh"
#include "kernels/cached_attention/launchers.cuh"
#include "kernels/cached_attention/prepare_head.cuh"
#include "kernels/device/global_loads.cuh"
#include "kernels/device/half_pair.h"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"

namespace awq2trt {
namespace {

constexpr int kWarps = kDecodeWarps;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kSlotTile = kDecodeSlotTile;  // slots of a warp's tile
constexpr int kRows = kDecodeRows;          // rows of a block

// The rows of a block and where their queries are.
struct RowTile {
  int sequence, kv_head, first_row, rows;  // first_row counts rows of the key-value head: token * heads_per_kv + head
  int position;                            // slot of the sequence's first new token
};

// The slots of one split; `active` splits have any.
struct Split {
  int begin, end, active;
};

template <typename Params>
__device__ __forceinline__ Split split_of(const Params& p, const SlotRange& seen, int split) {
  const int slots = max(seen.end - seen.begin, 0);
  const int tiles = (slots + kWarps * kSlotTile - 1) / (kWarps * kSlotTile);  // a tile for each warp
  const int share = max((tiles + p.splits - 1) / p.splits, 1) * kWarps * kSlotTile;
  const int begin = seen.begin + split * share;
  return {begin, min(begin + share, seen.end), (slots + share - 1) / share};
}

// What a row of the tile sees.
template <typename Params>
__device__ __forceinline__ SeenSlots seen_by_row(const Params& p, const RowTile& tile, int row) {
  const int slot = tile.position + (tile.first_row + row) / p.heads_per_kv;
  return {first_seen(p, slot), last_seen<true>(p, slot, tile.position + p.tokens - 1)};
}

template <typename Params>
__device__ __forceinline__ SlotRange slots_of_rows(const Params& p, const RowTile& tile) {
  return {seen_by_row(p, tile, 0).first, min(seen_by_row(p, tile, tile.rows - 1).last + 1, p.capacity)};
}

// Starts to load the first keys and values of a block's range into the L2 cache.
template <int kHeadDim, typename T, typename C>
__device__ __forceinline__ void prefetch_slots(const AttentionParams<T, C>& p, const RowTile& tile,
                                               const Split& split) {
  constexpr int kPrefetchedSlots = 256, kSector = 32;  // bytes that a request brings at least
  const int begin = max(split.begin, 0), end = min(min(split.end, begin + kPrefetchedSlots), p.capacity);
  const int64_t first = cache_row(p, tile.sequence, tile.kv_head, begin) * kHeadDim * static_cast<int>(sizeof(C));
  const int bytes = (end - begin) * kHeadDim * static_cast<int>(sizeof(C));
  for (int offset = static_cast<int>(threadIdx.x) * kSector; offset < bytes; offset += kThreads * kSector) {
    prefetch_to_l2(reinterpret_cast<const char*>(p.keys) + first + offset);
    prefetch_to_l2(reinterpret_cast<const char*>(p.values) + first + offset);
  }
  if constexpr (!std::is_same_v<C, T>) {
    constexpr int kScales = kSector / static_cast<int>(sizeof(T));
    const int64_t row = cache_row(p, tile.sequence, tile.kv_head, begin);
    for (int i = static_cast<int>(threadIdx.x) * kScales; i < end - begin; i += kThreads * kScales) {
      prefetch_to_l2(p.key_scales + row + i);
      prefetch_to_l2(p.value_scales + row + i);
    }
  }
}

template <typename T>
__device__ __forceinline__ uint32_t pair_of_floats(float low, float high);
template <>
__device__ __forceinline__ uint32_t pair_of_floats<__half>(float low, float high) {
  return bits_of(__floats2half2_rn(low, high));
}
template <>
__device__ __forceinline__ uint32_t pair_of_floats<__nv_bfloat16>(float low, float high) {
  return bits_of(__floats2bfloat162_rn(low, high));
}

// In fp16, weights times scales of values are at most 516, so scaling them up by 64, which keeps small scales precise,
// does not overflow.
constexpr float kScaleUp = 64.f;

// kWritesCache: the block computes its range of new keys and values, and its queries; otherwise both are ready.
template <int kHeadDim, bool kWritesCache, typename T, typename C>
__global__ void __launch_bounds__(kThreads, 2) decode_attention_kernel(AttentionParams<T, C> p) {
  using Tile = DecodeTile<T, C, kHeadDim>;
  constexpr bool kHasScales = !std::is_same_v<C, T>;
  __shared__ __align__(16) T query_shared[kRows][kHeadDim];
  __shared__ float sums_shared[kWarps][kRows][kHeadDim];
  __shared__ float2 maxima_shared[kWarps][kRows];

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;  // as in tensor_core.cuh

  RowTile tile;
  const int row_tiles = gridDim.y / p.kv_heads;
  tile.sequence = blockIdx.z;
  tile.kv_head = blockIdx.y / row_tiles;
  tile.first_row = blockIdx.y % row_tiles * kRows;
  tile.rows = min(kRows, p.tokens * p.heads_per_kv - tile.first_row);

  // The position may still change while we read it: then the wrong lines are fetched, which does no other harm.
  tile.position = position_within(p, load_fresh(p.position + tile.sequence));
  prefetch_slots<kHeadDim>(p, tile, split_of(p, slots_of_rows(p, tile), blockIdx.x));
  let_next_kernel_start();
  wait_for_previous_kernel();

  tile.position = position_within(p, load_fresh(p.position + tile.sequence));
  const Split split = split_of(p, slots_of_rows(p, tile), blockIdx.x);
  if (split.begin >= split.end) return;

  // --- Queries, and the new keys and values of this range ---

  const auto head_of = [&](int row) { return tile.kv_head * p.heads_per_kv + (tile.first_row + row) % p.heads_per_kv; };
  const auto token_of = [&](int row) { return (tile.first_row + row) / p.heads_per_kv; };
  for (int row = warp; row < kRows; row += kWarps) {
    T* const target = query_shared[row];
    if (row >= tile.rows) {
      for (int channel = lane; channel < kHeadDim; channel += kWarpSize) target[channel] = from_float<T>(0.f);
      continue;
    }
    const int64_t token = static_cast<int64_t>(tile.sequence) * p.tokens + token_of(row);
    if (kWritesCache) {
      const T* const source = p.qkv + (token * (p.heads + 2 * p.kv_heads) + head_of(row)) * kHeadDim;
      const int position = min(tile.position + token_of(row), p.capacity - 1);
      prepare_rotated<kHeadDim>(p, source, target, p.query_norm, position, lane);
    } else {
      const T* const source = p.queries + (token * p.heads + head_of(row)) * kHeadDim;
      for (int channel = lane; channel < kHeadDim; channel += kWarpSize) target[channel] = source[channel];
    }
  }
  if (kWritesCache) {
    // Different warps prepare keys and values, beginning with the last warp, which has the fewest queries.
    T* const scratch = reinterpret_cast<T*>(sums_shared[warp]);
    for (int task = kWarps - 1 - warp; task < 2 * p.tokens; task += kWarps) {
      const int token = task / 2, slot = tile.position + token;
      if (slot < split.begin || slot >= split.end) continue;
      if (task % 2 == 0) {
        write_key<kHeadDim>(p, tile.sequence, token, tile.kv_head, slot, lane, scratch);
      } else {
        write_value<kHeadDim>(p, tile.sequence, token, tile.kv_head, slot, lane, scratch);
      }
    }
  }
  __syncthreads();

  // --- The warp's slots ---

  const C* const keys = p.keys + cache_row(p, tile.sequence, tile.kv_head, 0) * kHeadDim;
  const C* const values = p.values + cache_row(p, tile.sequence, tile.kv_head, 0) * kHeadDim;
  const SeenSlots seen = seen_by_row(p, tile, min(g, tile.rows - 1));
  const float slope = p.alibi != nullptr ? p.alibi[head_of(min(g, tile.rows - 1))] : 0.f;

  typename Tile::Sums sum = {};  // row g; channels kLaneChannels (8 j + n) + e for n = 2t and 2t + 1
  float largest = kMasked, weights = 0.f;

  const T* key_scales = nullptr;
  const T* value_scales = nullptr;
  if constexpr (kHasScales) {
    key_scales = p.key_scales + cache_row(p, tile.sequence, tile.kv_head, 0);
    value_scales = p.value_scales + cache_row(p, tile.sequence, tile.kv_head, 0);
  }
  [[maybe_unused]] uint16_t next_scale = 0;  // a lane's, of the tile whose keys are loaded

  int first = split.begin + warp * kSlotTile;
  typename Tile::Keys key;
  if (Tile::kLoadsAhead && first < split.end) {
    Tile::load_keys(key, keys, {first, split.end, g, t});
    if constexpr (kHasScales) {
      next_scale = Tile::load_scale(key_scales, value_scales, {first, split.end, g, t}, lane);
    }
  }
#pragma unroll 1
  for (; first < split.end; first += kWarps * kSlotTile) {
    typename Tile::Values value;
    if (Tile::kLoadsAhead) {
      Tile::load_values(value, values, {first, split.end, g, t});
    } else {
      Tile::load_keys(key, keys, {first, split.end, g, t});
    }

    float score[2][4] = {};
    Tile::multiply_keys(score, query_shared[g], key, t);
    [[maybe_unused]] const float scale = float_of_bits<T>(next_scale);
    if (!Tile::kLoadsAhead) {
      Tile::load_values(value, values, {first, split.end, g, t});
    } else if (first + kWarps * kSlotTile < split.end) {
      Tile::load_keys(key, keys, {first + kWarps * kSlotTile, split.end, g, t});
      if constexpr (kHasScales) {
        next_scale = Tile::load_scale(key_scales, value_scales, {first + kWarps * kSlotTile, split.end, g, t}, lane);
      }
    }

    float tile_largest = kMasked;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int slot = first + 8 * i + 2 * t + n;
        if constexpr (kHasScales) score[i][n] *= __shfl_sync(0xffffffffu, scale, 8 * i + 2 * t + n);
        score[i][n] = slot < split.end ? score_of<false>(p, score[i][n], slot, seen, slope) : kMasked;
        tile_largest = fmaxf(tile_largest, score[i][n]);
      }
    }
    tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, 1));
    tile_largest = fmaxf(tile_largest, __shfl_xor_sync(0xffffffffu, tile_largest, 2));
    const float now_largest = fmaxf(largest, tile_largest);
    const float shrink = exp2f(largest - now_largest);
    largest = now_largest;
    weights *= shrink;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        score[i][n] = score[i][n] == kMasked ? 0.f : exp2f(score[i][n] - largest);
        weights += score[i][n];
        if constexpr (kHasScales) {
          score[i][n] *= kScaleUp * __shfl_sync(0xffffffffu, scale, kSlotTile + 8 * i + 2 * t + n);
        }
      }
    }
    const uint32_t a0 = pair_of_floats<T>(score[0][0], score[0][1]);
    const uint32_t a2 = pair_of_floats<T>(score[1][0], score[1][1]);
    Tile::add_values(sum, shrink, a0, a2, value);
  }

  // --- Warps are combined ---

  weights += __shfl_xor_sync(0xffffffffu, weights, 1);
  weights += __shfl_xor_sync(0xffffffffu, weights, 2);
  if (t == 0) maxima_shared[warp][g] = make_float2(largest, weights);
#pragma unroll
  for (int j = 0; j < Tile::kValueLoads; ++j) {
#pragma unroll
    for (int e = 0; e < Tile::kLaneChannels; ++e) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int channel = 8 * Tile::kLaneChannels * j + Tile::kLaneChannels * (2 * t + n) + e;
        if constexpr (kHasScales) sum[j][e][n] *= 1.f / kScaleUp;
        if (channel < kHeadDim) sums_shared[warp][g][channel] = sum[j][e][n];
      }
    }
  }
  __syncthreads();

  for (int i = threadIdx.x; i < tile.rows * kHeadDim; i += kThreads) {
    const int row = i / kHeadDim, channel = i % kHeadDim;
    float block_largest = kMasked;
    for (int w = 0; w < kWarps; ++w) block_largest = fmaxf(block_largest, maxima_shared[w][row].x);
    float total = 0.f, block_weights = 0.f;
    for (int w = 0; w < kWarps; ++w) {
      const float factor = exp2f(maxima_shared[w][row].x - block_largest);
      total += factor * sums_shared[w][row][channel];
      block_weights += factor * maxima_shared[w][row].y;
    }
    const int token = token_of(row), head = head_of(row);
    if (split.active == 1) {
      const int64_t place = (static_cast<int64_t>(tile.sequence) * p.tokens + token) * p.heads + head;
      p.y[place * kHeadDim + channel] = from_float<T>(total / block_weights);
    } else {
      const int64_t place =
          ((static_cast<int64_t>(tile.sequence) * p.heads + head) * p.tokens + token) * p.splits + blockIdx.x;
      p.partials[place * kHeadDim + channel] = total;
      if (channel == 0) p.maxima[place] = make_float2(block_largest, block_weights);
    }
  }
}

// Adds up the splits of one row: one block per row, one thread per channel.
template <int kHeadDim, typename T, typename C>
__global__ void __launch_bounds__(kHeadDim) combine_kernel(AttentionParams<T, C> p) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int head = blockIdx.x, token = blockIdx.y, sequence = blockIdx.z;
  RowTile tile;  // the row tile that the row was in: its slots were split, not the row's own
  tile.sequence = sequence;
  tile.kv_head = head / p.heads_per_kv;
  const int row = token * p.heads_per_kv + head % p.heads_per_kv;
  tile.first_row = row / kRows * kRows;
  tile.rows = min(kRows, p.tokens * p.heads_per_kv - tile.first_row);
  tile.position = position_within(p, p.position[sequence]);
  const int active = split_of(p, slots_of_rows(p, tile), 0).active;
  if (active <= 1) return;

  // All threads compute the splits' factors once; then each thread adds up a channel.
  __shared__ float2
      factors[kHeadDim];  // factor, and factor times the split's sum of weights; of kHeadDim splits a pass
  __shared__ float largest_shared;
  const int64_t place = ((static_cast<int64_t>(sequence) * p.heads + head) * p.tokens + token) * p.splits;
  if (threadIdx.x < kWarpSize) {
    float largest = kMasked;
    for (int s = threadIdx.x; s < active; s += kWarpSize) largest = fmaxf(largest, p.maxima[place + s].x);
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    }
    if (threadIdx.x == 0) largest_shared = largest;
  }
  float total = 0.f, weights = 0.f;
  for (int first = 0; first < active; first += kHeadDim) {
    __syncthreads();
    const int split = first + static_cast<int>(threadIdx.x);
    if (split < active) {
      const float2 maximum = p.maxima[place + split];
      const float factor = exp2f(maximum.x - largest_shared);
      factors[threadIdx.x] = make_float2(factor, factor * maximum.y);
    }
    __syncthreads();
    const float* const sums = p.partials + (place + first) * kHeadDim + threadIdx.x;
    const int count = min(active - first, kHeadDim);
#pragma unroll 8
    for (int s = 0; s < count; ++s) {
      total += factors[s].x * sums[s * kHeadDim];
      weights += factors[s].y;
    }
  }
  const int64_t out = (static_cast<int64_t>(sequence) * p.tokens + token) * p.heads + head;
  p.y[out * kHeadDim + threadIdx.x] = from_float<T>(total / weights);
}

}  // namespace

template <int kHeadDim, typename T, typename C>
cudaError_t launch_decode_attention(const AttentionParams<T, C>& params, const AttentionConfig& config, int batch,
                                    cudaStream_t stream) {
  const int rows = params.tokens * params.heads_per_kv;
  const unsigned row_tiles = (rows + kRows - 1) / kRows;
  const dim3 grid(params.splits, row_tiles * params.kv_heads, batch);
  auto* const kernel = config.kernel == AttentionKernel::kDecode ? decode_attention_kernel<kHeadDim, true, T, C>
                                                                 : decode_attention_kernel<kHeadDim, false, T, C>;
  const cudaError_t status = launch_kernel(kernel, grid, kThreads, 0, config.overlap, stream, params);
  if (status != cudaSuccess || params.splits == 1) return status;
  return launch_kernel(combine_kernel<kHeadDim, T, C>, dim3(params.heads, params.tokens, batch), kHeadDim, 0,
                       config.overlap, stream, params);
}

#define AWQ2TRT_INSTANTIATE(head_dim, T, C)                                                                         \
  template cudaError_t launch_decode_attention<head_dim>(const AttentionParams<T, C>&, const AttentionConfig&, int, \
                                                         cudaStream_t);
AWQ2TRT_FOR_EACH_ATTENTION(AWQ2TRT_INSTANTIATE)
#undef AWQ2TRT_INSTANTIATE

}  // namespace awq2trt
