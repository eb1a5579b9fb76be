// Attention of many queries (FlashAttention-2, arXiv:2307.08691): blocks of queries walk over tiles of keys and values
// and compute softmax on the way, so that no score ever leaves the registers.
//
// - A block has 64 or 128 queries of one head, 16 a warp, and walks over the slots that any of them sees. Keys and
//   values of a tile pass through shared memory, two tiles deep (cp.async): while one is multiplied, the next is under
//   way.
// - Codes of a cache pass through registers, where they become numbers, once for all queries of the block: the loads of
//   the next tile are under way while one is multiplied.
// - Rows in shared memory are padded by 16 bytes, which puts 8 consecutive rows into 8 different groups of banks for
//   ldmatrix, for every head size that there is.
// - Blocks with the most slots start first: with a causal mask those are the last queries.
// - Where tokens see what is behind them, up to ends that never decrease, a block walks up to the end of its last
//   query, and each row is masked from its own end on. Only kernels for this know ends.
#include <type_traits>

#include "kernels/cached_attention/codes.h"
#include "kernels/cached_attention/launchers.cuh"
#include "kernels/cached_attention/weights.cuh"
#include "kernels/device/async_copy.cuh"
#include "kernels/device/global_loads.cuh"
#include "kernels/device/half_pair.h"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"

namespace awq2trt {
namespace {

// Shapes of a block.
template <int kHeadDim>
struct PrefillShape {
  static constexpr int kWarps = kHeadDim <= 128 ? 8 : 4;
  static constexpr int kQueries = kWarps * 16;
  static constexpr int kSlots = kHeadDim <= 128 ? 64 : 32;  // of a tile
  static constexpr int kStride = kHeadDim + 8;              // of a row in shared memory
  static constexpr int kTile = kSlots * kStride;            // channels of a tile
  static constexpr int kSharedBytes = 4 * kTile * 2;        // two tiles of keys and two of values
  static_assert(kQueries * kStride * 2 <= kSharedBytes, "queries pass through the same memory");
};

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

__device__ __forceinline__ void load_transposed_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// 16 codes of a tile that a thread brings, and the scale of their slot.
template <typename T, int kHeadDim>
struct PieceOfCodes {
  using Shape = PrefillShape<kHeadDim>;
  static constexpr int kInRow = kHeadDim / 16;
  static constexpr int kInTile = Shape::kSlots * kInRow;
  static constexpr int kThreads = Shape::kWarps * kWarpSize;
  static constexpr int kOfThread = (kInTile + kThreads - 1) / kThreads;

  uint4 codes;
  uint16_t scale;

  // The thread's piece `i` of the slots from `first` on; zeros from `end` on.
  __device__ __forceinline__ void load(int i, const int8_t* rows, const T* scales, int first, int end) {
    const int piece = static_cast<int>(threadIdx.x) + i * kThreads, slot = first + piece / kInRow;
    const bool there = piece < kInTile && slot < end;
    codes = there ? load_now(rows + static_cast<int64_t>(slot) * kHeadDim + piece % kInRow * 16) : uint4{};
    scale = there ? load_2_now(scales + slot) : uint16_t{0};
  }

  // Writes the codes as numbers to a tile in shared memory.
  __device__ __forceinline__ void store(int i, T* tile) const {
    using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
    const int piece = static_cast<int>(threadIdx.x) + i * kThreads;
    if (piece >= kInTile) return;
    const Pair factor = pair_of<Pair>(scale * kBothHalves);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t pairs[8];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const WordOfCodes numbers = numbers_of_codes<T>(words[word]);
#pragma unroll
      for (int k = 0; k < 2; ++k) pairs[2 * word + k] = bits_of(__hmul2(pair_of<Pair>(numbers.pair[k]), factor));
    }
    uint4* const place = reinterpret_cast<uint4*>(tile + piece / kInRow * Shape::kStride + piece % kInRow * 16);
    place[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    place[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
  }
};

// Whether tiles that all queries of a warp see have a path of their own; with more channels it has no registers left.
template <int kHeadDim>
constexpr bool kHasWholeTiles = kHeadDim <= 128;

// What the scores of a call are made of.
enum class Scores {
  kAny,           // perhaps with a soft cap or ALiBi
  kPlain,         // products times a scale
  kPlainWithEnds  // the same, where tokens may see what is behind them
};

template <int kHeadDim, Scores kScores, typename T, typename C>
__global__ void __launch_bounds__(PrefillShape<kHeadDim>::kWarps* kWarpSize)
    prefill_attention_kernel(AttentionParams<T, C> p) {
  using Shape = PrefillShape<kHeadDim>;
  constexpr int kThreads = Shape::kWarps * kWarpSize;
  constexpr int kVectors = kHeadDim / 8;  // of 16 bytes, in a row
  constexpr int kSteps = kHeadDim / 16;   // of k, in a score
  constexpr bool kPlain = kScores != Scores::kAny, kHasEnds = kScores == Scores::kPlainWithEnds;
  using Seen = std::conditional_t<kHasEnds, SeenSlots, OwnSlot>;
  extern __shared__ uint4 shared[];
  T* const tiles = reinterpret_cast<T*>(shared);  // keys 0, keys 1, values 0, values 1
  const uint32_t tiles_address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;  // as in tensor_core.cuh
  const int head = blockIdx.y, sequence = blockIdx.z, kv_head = head / p.heads_per_kv;
  const int first_token = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Shape::kQueries;
  const int last_token = min(first_token + Shape::kQueries, p.tokens) - 1;

  const int position = position_within(p, p.position[sequence]);
  const auto first_seen_by = [&](int token) { return first_seen(p, position + token); };
  const auto last_seen_by = [&](int token) {
    return last_seen<kHasEnds>(p, position + token, position + p.tokens - 1);
  };
  const SlotRange seen = {first_seen_by(first_token), min(last_seen_by(last_token) + 1, p.capacity)};
  constexpr bool kHasCodes = !std::is_same_v<C, T>;
  const C* const keys = p.keys + cache_row(p, sequence, kv_head, 0) * kHeadDim;
  const C* const values = p.values + cache_row(p, sequence, kv_head, 0) * kHeadDim;

  // With ends, what queries see waits in shared memory: with the most channels there are no registers for it.
  __shared__ SeenSlots seen_shared[kHasEnds ? Shape::kQueries : 1];
  if (kHasEnds && threadIdx.x < Shape::kQueries) {
    const int token = min(first_token + static_cast<int>(threadIdx.x), last_token);
    seen_shared[threadIdx.x] = {first_seen_by(token), last_seen_by(token)};
  }

  // --- Queries: through shared memory into registers, where they stay ---

  for (int i = threadIdx.x; i < Shape::kQueries * kVectors; i += kThreads) {
    const int row = i / kVectors, vector = i % kVectors, token = min(first_token + row, last_token);
    const T* const source =
        p.queries + ((static_cast<int64_t>(sequence) * p.tokens + token) * p.heads + head) * kHeadDim;
    *reinterpret_cast<uint4*>(tiles + row * Shape::kStride + 8 * vector) =
        *reinterpret_cast<const uint4*>(source + 8 * vector);
  }
  __syncthreads();
  uint32_t query[kSteps][4];
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const int row = warp * 16 + lane % 16, channel = 16 * k + lane / 16 * 8;
    load_matrices(query[k], tiles_address + (row * Shape::kStride + channel) * 2);
  }
  __syncthreads();

  [[maybe_unused]] const auto start_copies = [&](int stage, int first) {
    for (int i = threadIdx.x; i < Shape::kSlots * kVectors; i += kThreads) {
      const int row = i / kVectors, vector = i % kVectors;
      const bool valid = first + row < seen.end;
      const int64_t source = static_cast<int64_t>(valid ? first + row : seen.begin) * kHeadDim + 8 * vector;
      const uint32_t place = (row * Shape::kStride + 8 * vector) * 2;
      copy_16_async(tiles_address + stage * Shape::kTile * 2 + place, keys + source, valid);
      copy_16_async(tiles_address + (2 + stage) * Shape::kTile * 2 + place, values + source, valid);
    }
    commit_copies();
  };

  float sum[kHeadDim / 8][4] = {};
  float largest[2] = {kMasked, kMasked}, weights[2] = {};
  const auto token_of = [&](int row) { return min(first_token + warp * 16 + row, last_token); };  // of the warp's rows
  const int own_slot[2] = {position + token_of(g), position + token_of(g + 8)};
  const auto seen_by_query = [&](int r) -> Seen {  // a thread's queries are those of rows g and g + 8
    if constexpr (kHasEnds) {
      return seen_shared[warp * 16 + g + 8 * r];
    } else {
      return {own_slot[r]};
    }
  };
  const float slope = !kPlain && p.alibi != nullptr ? p.alibi[head] : 0.f;
  const int seen_by_all_from = first_seen_by(token_of(15)), seen_by_all_to = last_seen_by(token_of(0));

  using Piece = PieceOfCodes<T, kHeadDim>;
  constexpr bool kLoadsAhead = kHeadDim <= 128;  // more channels leave no registers for the next codes
  [[maybe_unused]] Piece next_keys[Piece::kOfThread], next_values[Piece::kOfThread];
  [[maybe_unused]] const T* const key_scales = p.key_scales + cache_row(p, sequence, kv_head, 0);
  [[maybe_unused]] const T* const value_scales = p.value_scales + cache_row(p, sequence, kv_head, 0);
  [[maybe_unused]] const auto load_next = [&](int first) {
    if constexpr (kHasCodes) {
#pragma unroll
      for (int i = 0; i < Piece::kOfThread; ++i) {
        next_keys[i].load(i, keys, key_scales, first, seen.end);
        next_values[i].load(i, values, value_scales, first, seen.end);
      }
    }
  };
  [[maybe_unused]] const auto store_next = [&](int stage) {
#pragma unroll
    for (int i = 0; i < Piece::kOfThread; ++i) {
      next_keys[i].store(i, tiles + stage * Shape::kTile);
      next_values[i].store(i, tiles + (2 + stage) * Shape::kTile);
    }
  };
  [[maybe_unused]] const auto bring = [&](int stage, int first) {
    if constexpr (kHasCodes) {
#pragma unroll 1
      for (int i = 0; i < Piece::kOfThread; ++i) {
        Piece key, value;
        key.load(i, keys, key_scales, first, seen.end);
        value.load(i, values, value_scales, first, seen.end);
        key.store(i, tiles + stage * Shape::kTile);
        value.store(i, tiles + (2 + stage) * Shape::kTile);
      }
    }
  };

  int stage = 0;
  if constexpr (kHasCodes) {
    bring(stage, seen.begin);
  } else {
    start_copies(stage, seen.begin);
  }
  for (int first = seen.begin; first < seen.end; first += Shape::kSlots, stage ^= 1) {
    const bool has_next = first + Shape::kSlots < seen.end;
    if constexpr (kHasCodes) {
      if (kLoadsAhead && has_next) load_next(first + Shape::kSlots);
    } else {
      if (has_next) start_copies(stage ^ 1, first + Shape::kSlots);
      if (has_next) {
        wait_for_copies<1>();
      } else {
        wait_for_copies<0>();
      }
    }
    __syncthreads();

    // Scores of 16 queries and the tile's slots; ldmatrix brings 16 slots x 16 channels at a time.
    float score[Shape::kSlots / 8][4] = {};
    const uint32_t key_tile = tiles_address + stage * Shape::kTile * 2;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int n = 0; n < Shape::kSlots / 16; ++n) {
        const int row = 16 * n + lane / 16 * 8 + lane % 8, channel = 16 * k + lane / 8 % 2 * 8;
        uint32_t key[4];
        load_matrices(key, key_tile + (row * Shape::kStride + channel) * 2);
        mma_16x8x16(score[2 * n], query[k], key[0], key[1], T{});
        mma_16x8x16(score[2 * n + 1], query[k], key[2], key[3], T{});
      }
    }

    // One step of softmax; c0 and c1 belong to row g, c2 and c3 to row g + 8. Where every query of the warp sees every
    // slot of the tile, nothing is compared.
    const bool whole =
        kHasWholeTiles<kHeadDim> && kPlain && first + Shape::kSlots - 1 <= seen_by_all_to && first >= seen_by_all_from;
    const Seen seen_by[2] = {seen_by_query(0), seen_by_query(1)};
    float tile_largest[2] = {kMasked, kMasked};
#pragma unroll
    for (int n = 0; n < Shape::kSlots / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (whole) {
          score[n][i] *= p.scale * kLog2E;
        } else {
          const int slot = first + 8 * n + 2 * t + i % 2;
          score[n][i] = score_of<kPlain>(p, score[n][i], slot, seen_by[i / 2], slope);
        }
        tile_largest[i / 2] = fmaxf(tile_largest[i / 2], score[n][i]);
      }
    }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tile_largest[r] = fmaxf(tile_largest[r], __shfl_xor_sync(0xffffffffu, tile_largest[r], 1));
      tile_largest[r] = fmaxf(tile_largest[r], __shfl_xor_sync(0xffffffffu, tile_largest[r], 2));
      const float now_largest = fmaxf(largest[r], tile_largest[r]);
      shrink[r] = power_of_2(largest[r] - now_largest);
      largest[r] = now_largest;
      weights[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < Shape::kSlots / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float weight = power_of_2(score[n][i] - largest[i / 2]);
        score[n][i] = !whole && score[n][i] == kMasked ? 0.f : weight;
        weights[i / 2] += score[n][i];
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] *= shrink[i / 2];
    }

    // Weights of 16 slots are the A operand as they are; values come transposed.
    const uint32_t value_tile = tiles_address + (2 + stage) * Shape::kTile * 2;
#pragma unroll
    for (int k = 0; k < Shape::kSlots / 16; ++k) {
      const uint32_t weight[4] = {pair_as(score[2 * k][0], score[2 * k][1], T{}),
                                  pair_as(score[2 * k][2], score[2 * k][3], T{}),
                                  pair_as(score[2 * k + 1][0], score[2 * k + 1][1], T{}),
                                  pair_as(score[2 * k + 1][2], score[2 * k + 1][3], T{})};
#pragma unroll
      for (int n = 0; n < kSteps; ++n) {
        const int row = 16 * k + lane / 8 % 2 * 8 + lane % 8, channel = 16 * n + lane / 16 * 8;
        uint32_t value[4];
        load_transposed_matrices(value, value_tile + (row * Shape::kStride + channel) * 2);
        mma_16x8x16(sum[2 * n], weight, value[0], value[1], T{});
        mma_16x8x16(sum[2 * n + 1], weight, value[2], value[3], T{});
      }
    }
    if constexpr (kHasCodes) {
      // All warps are done with the other tile since the barrier above.
      if (kLoadsAhead && has_next) store_next(stage ^ 1);
      if (!kLoadsAhead && has_next) bring(stage ^ 1, first + Shape::kSlots);
    } else {
      __syncthreads();
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    weights[r] += __shfl_xor_sync(0xffffffffu, weights[r], 1);
    weights[r] += __shfl_xor_sync(0xffffffffu, weights[r], 2);
    const int token = first_token + warp * 16 + g + 8 * r;
    if (token >= p.tokens) continue;
    T* const y = p.y + ((static_cast<int64_t>(sequence) * p.tokens + token) * p.heads + head) * kHeadDim;
    const float scale = 1.f / weights[r];
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      *reinterpret_cast<uint32_t*>(y + 8 * n + 2 * t) = pair_as(sum[n][2 * r] * scale, sum[n][2 * r + 1] * scale, T{});
    }
  }
}

}  // namespace

template <int kHeadDim, typename T, typename C>
cudaError_t launch_prefill_attention(const AttentionParams<T, C>& params, int batch, cudaStream_t stream) {
  using Shape = PrefillShape<kHeadDim>;
  const unsigned blocks = (params.tokens + Shape::kQueries - 1) / Shape::kQueries;
  constexpr Scores kFewest = kHasWholeTiles<kHeadDim> ? Scores::kPlain : Scores::kAny;
  const bool plain = params.softcap == 0.f && params.alibi == nullptr;
  auto* const kernel = params.visible_end != nullptr ? prefill_attention_kernel<kHeadDim, Scores::kPlainWithEnds, T, C>
                       : plain                       ? prefill_attention_kernel<kHeadDim, kFewest, T, C>
                                                     : prefill_attention_kernel<kHeadDim, Scores::kAny, T, C>;
  return launch_kernel(kernel, dim3(blocks, params.heads, batch), Shape::kWarps * kWarpSize, Shape::kSharedBytes, false,
                       stream, params);
}

#define AWQ2TRT_INSTANTIATE(head_dim, T, C) \
  template cudaError_t launch_prefill_attention<head_dim>(const AttentionParams<T, C>&, int, cudaStream_t);
AWQ2TRT_FOR_EACH_ATTENTION(AWQ2TRT_INSTANTIATE)
#undef AWQ2TRT_INSTANTIATE

}  // namespace awq2trt
