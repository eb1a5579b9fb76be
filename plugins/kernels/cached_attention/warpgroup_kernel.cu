// Attention of many queries with Hopper's own products (wgmma) and copies (TMA), as FlashAttention-3 (arXiv:2407.08608)
// has them, for head sizes of 64 and 128 and plain scores; prefill_kernel.cu does everything else.
//
// - A block has 128 queries of one head, 64 a warpgroup, and walks over tiles of 128 slots that any of them sees. One
//   thread has the hardware copy keys and values, two tiles deep.
// - Scores of the next tile are under way while sums take up the values of this one, and those while weights of the
//   next are computed. While one warpgroup computes weights, the other one's products run.
// - Weights stay in registers, where they are operands as they are. Queries stay in shared memory.
// - Slots behind the last one that was written may hold anything: their scores are masked, and their values become 0 in
//   shared memory, since 0 times infinity is not 0.
// - Blocks with the most slots start first: with a causal mask those are the last queries.
//
// Compiled for sm_90a alone, where the build asks for compute capability 9.0; empty elsewhere, as in a kit for Orin.
#ifdef AWQ2TRT_HOPPER

#include <type_traits>

#include "kernels/cached_attention/launchers.cuh"
#include "kernels/cached_attention/weights.cuh"
#include "kernels/device/bulk_copy.cuh"
#include "kernels/device/half_pair.h"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"
#include "kernels/device/wgmma.cuh"

namespace awq2trt {
namespace {

constexpr int kWarpgroups = 2;
constexpr int kQueries = kWarpgroups * kProductRows;
constexpr int kSlots = 128;  // of a tile
constexpr int kStages = 2;
constexpr int kThreads = kWarpgroups * kWarpgroupSize;
constexpr int kBoxChannels = 64;                      // 128 bytes, which is what copies can swizzle
constexpr int kBoxBytes = kSlots * kBoxChannels * 2;  // of 128 rows
static_assert(kQueries == kSlots, "queries, keys and values are copied in boxes of one size");

// A block's shared memory: queries, then keys and values of each stage, then barriers.
template <int kHeadDim>
struct Shared {
  static constexpr int kBoxes = kHeadDim / kBoxChannels;
  static constexpr int kTileBytes = kBoxes * kBoxBytes;
  static constexpr int kBarriersAt = (1 + 2 * kStages) * kTileBytes;
  static constexpr int kBytes = kSwizzleBytes + kBarriersAt + (1 + 4 * kStages) * kBarrierBytes;

  uint32_t base;

  __device__ __forceinline__ uint32_t queries() const { return base; }
  __device__ __forceinline__ uint32_t keys(int stage) const { return base + (1 + stage) * kTileBytes; }
  __device__ __forceinline__ uint32_t values(int stage) const { return base + (1 + kStages + stage) * kTileBytes; }
  __device__ __forceinline__ uint32_t queries_full() const { return barrier(0); }
  __device__ __forceinline__ uint32_t keys_full(int stage) const { return barrier(1 + stage); }
  __device__ __forceinline__ uint32_t keys_empty(int stage) const { return barrier(1 + kStages + stage); }
  __device__ __forceinline__ uint32_t values_full(int stage) const { return barrier(1 + 2 * kStages + stage); }
  __device__ __forceinline__ uint32_t values_empty(int stage) const { return barrier(1 + 3 * kStages + stage); }

  __device__ __forceinline__ void init_barriers() const {
    init_barrier(queries_full(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(keys_full(stage), 1);
      init_barrier(values_full(stage), 1);
      init_barrier(keys_empty(stage), kWarpgroups);
      init_barrier(values_empty(stage), kWarpgroups);
    }
    publish_barriers();
  }

  // Starts to copy a tile's boxes.
  __device__ __forceinline__ void copy(uint32_t target, const CUtensorMap* map, int column, int row,
                                       uint32_t full) const {
    arrive_expecting(full, kTileBytes);
    for (int box = 0; box < kBoxes; ++box)
      copy_tile(target + box * kBoxBytes, map, column + box * kBoxChannels, row, full);
  }

 private:
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + kBarriersAt + i * kBarrierBytes; }
};

// One step of softmax for a lane's two rows: scores become weights, and sums before it are to shrink by `shrink`.
struct Softmax {
  float largest[2] = {kMasked, kMasked}, weights[2] = {};

  // `factor`: of scores, with log2(e). Whether some scores are masked: those weigh nothing, even if all of a row are.
  __device__ __forceinline__ void step(float (&scores)[kSlots / 2], float factor, bool masked, float (&shrink)[2]) {
    float tile_largest[2] = {kMasked, kMasked};
#pragma unroll
    for (int i = 0; i < kSlots / 2; ++i) tile_largest[i / 2 % 2] = fmaxf(tile_largest[i / 2 % 2], scores[i]);
    float offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      tile_largest[r] = fmaxf(tile_largest[r], __shfl_xor_sync(0xffffffffu, tile_largest[r], 1));
      tile_largest[r] = fmaxf(tile_largest[r], __shfl_xor_sync(0xffffffffu, tile_largest[r], 2));
      const float now_largest = fmaxf(largest[r], tile_largest[r]);
      shrink[r] = power_of_2((largest[r] - now_largest) * factor);
      largest[r] = now_largest;
      offset[r] = now_largest * factor;
      weights[r] *= shrink[r];
    }
#pragma unroll
    for (int i = 0; i < kSlots / 2; ++i) {
      const float weight = power_of_2(fmaf(scores[i], factor, -offset[i / 2 % 2]));
      scores[i] = masked && scores[i] == kMasked ? 0.f : weight;
      weights[i / 2 % 2] += scores[i];
    }
  }
};

template <int kHeadDim, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    warpgroup_attention_kernel(const AttentionParams<T> p, const __grid_constant__ CUtensorMap query_map,
                               const __grid_constant__ CUtensorMap key_map,
                               const __grid_constant__ CUtensorMap value_map) {
  extern __shared__ uint8_t unaligned[];
  const uint32_t unaligned_address = shared_address(unaligned);
  const uint32_t address = (unaligned_address + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes;
  const Shared<kHeadDim> shared = {address};
  const int head = blockIdx.y, sequence = blockIdx.z;
  const int first_token = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int last_token = min(first_token + kQueries, p.tokens) - 1;
  const int position = position_within(p, p.position[sequence]);
  // At least one slot, even where a position outside the cache makes the result meaningless.
  const SlotRange seen = {min(first_seen(p, position + first_token), p.capacity - 1),
                          min(position + last_token + 1, p.capacity)};
  const int tiles = (seen.end - seen.begin + kSlots - 1) / kSlots;
  if (threadIdx.x == 0) shared.init_barriers();
  __syncthreads();

  const bool copies = threadIdx.x == 0;
  const int first_row = static_cast<int>(cache_row(p, sequence, head / p.heads_per_kv, seen.begin));
  // Start to copy a tile, if there is one, once both warpgroups are done with the one before it in its place.
  const auto fetch_keys = [&](int tile) {
    if (!copies || tile >= tiles) return;
    const int stage = tile % kStages, round = tile / kStages;
    if (round > 0) wait_for_phase(shared.keys_empty(stage), (round - 1) & 1);
    shared.copy(shared.keys(stage), &key_map, 0, first_row + tile * kSlots, shared.keys_full(stage));
  };
  const auto fetch_values = [&](int tile) {
    if (!copies || tile >= tiles) return;
    const int stage = tile % kStages, round = tile / kStages;
    if (round > 0) wait_for_phase(shared.values_empty(stage), (round - 1) & 1);
    shared.copy(shared.values(stage), &value_map, 0, first_row + tile * kSlots, shared.values_full(stage));
  };
  if (copies) {
    shared.copy(shared.queries(), &query_map, head * kHeadDim, sequence * p.tokens + first_token,
                shared.queries_full());
  }
  fetch_keys(0);
  fetch_keys(1);
  fetch_values(0);

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int warpgroup = warp / 4, thread = threadIdx.x % kWarpgroupSize;
  const int g = lane / 4, t = lane % 4;                          // as in tensor_core.cuh
  const int own_first = first_token + warpgroup * kProductRows;  // tokens of the warpgroup, perhaps behind the last
  const auto token_of = [&](int row) { return min(own_first + row, last_token); };
  const int row = warp % 4 * kRowTile + g;  // and the row 8 below it
  const OwnSlot own[2] = {{position + token_of(row)}, {position + token_of(row + 8)}};
  const int seen_by_all_from = first_seen(p, position + token_of(kProductRows - 1));
  const int seen_by_all_to = position + token_of(0), seen_by_any_to = position + token_of(kProductRows - 1);
  const float factor = p.scale * kLog2E;

  float scores[kSlots / 2], sums[kHeadDim / 2] = {};
  const uint64_t queries = tokens_operand(shared.queries() + warpgroup * kProductRows * kBoxChannels * 2);
  const auto start_scores = [&](int tile) {
    wait_for_phase(shared.keys_full(tile % kStages), tile / kStages & 1);
    const uint64_t keys = tokens_operand(shared.keys(tile % kStages));
    settle(scores);
    begin_products();
#pragma unroll
    for (int k = 0; k < kHeadDim / kProductK; ++k) {
      const int box = k * kProductK / kBoxChannels, step = k % (kBoxChannels / kProductK);
      const int place = box * (kBoxBytes / 16) + 2 * step;
      start_product<T>(scores, queries + place, keys + place, k);
    }
    commit_products();
  };
  const auto release = [&](uint32_t barrier) {
    if (thread == 0) arrive(barrier);
  };
  // Clears the values of slots from `written` on, once for this warpgroup.
  const auto clear_values = [&](uint32_t values, int written) {
    for (int i = 0; thread >= written && i < kHeadDim / 8; ++i) {
      const uint32_t place = values + i / 8 * kBoxBytes + thread * kBoxChannels * 2 + i % 8 * 16;
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(place), "r"(0) : "memory");
    }
    publish_to_products();
    if (warpgroup == 0) {
      asm volatile("bar.sync 1, 128;" ::: "memory");
    } else {
      asm volatile("bar.sync 2, 128;" ::: "memory");
    }
  };
  // Tiles that this warpgroup sees: at most the last one is for the other alone, and then nobody waits for its release.
  const int own_tiles = min(tiles, (seen_by_any_to - seen.begin) / kSlots + 1);

  wait_for_phase(shared.queries_full(), 0);
  start_scores(0);
  wait_for_products<0>();
  settle(scores);
  release(shared.keys_empty(0));
  Softmax softmax;
  uint32_t weights[kSlots / kProductK][4];
  // Scores become weights in the form of an operand, and sums shrink; values of the tile before have been added then.
  const auto weigh = [&](int tile) {
    const int first = seen.begin + tile * kSlots;
    const bool masked = first + kSlots - 1 > seen_by_all_to || first < seen_by_all_from;
    if (masked) {
#pragma unroll
      for (int i = 0; i < kSlots / 2; ++i) {
        if (!sees(p, own[i / 2 % 2], first + i / 4 * 8 + 2 * t + i % 2)) scores[i] = kMasked;
      }
    }
    float shrink[2];
    softmax.step(scores, factor, masked, shrink);
    wait_for_products<0>();
    settle(sums);
    if (tile > 0) release(shared.values_empty((tile - 1) % kStages));
#pragma unroll
    for (int i = 0; i < kSlots / 4; ++i) weights[i / 4][i % 4] = pair_as(scores[2 * i], scores[2 * i + 1], T{});
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums[i] *= shrink[i / 2 % 2];
    settle(sums);
  };
  const auto start_values = [&](int tile) {
    const int written = seen.end - seen.begin - tile * kSlots;
    const uint32_t place = shared.values(tile % kStages);
    wait_for_phase(shared.values_full(tile % kStages), tile / kStages & 1);
    if (written < kSlots) clear_values(place, written);
    const uint64_t values = columns_operand(place, kBoxBytes);
    begin_products();
#pragma unroll
    for (int k = 0; k < kSlots / kProductK; ++k)
      start_product_by_rows<T>(sums, weights[k], values + k * (kProductK * kBoxChannels * 2 / 16));
    commit_products();
  };

  for (int tile = 0; tile + 1 < own_tiles; ++tile) {
    weigh(tile);
    start_scores(tile + 1);
    start_values(tile);
    wait_for_products<1>();
    settle(scores);
    release(shared.keys_empty((tile + 1) % kStages));
    fetch_keys(tile + 2);
    fetch_values(tile + 1);
  }
  weigh(own_tiles - 1);
  fetch_values(own_tiles);
  start_values(own_tiles - 1);
  wait_for_products<0>();
  settle(sums);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float weight = softmax.weights[r];
    weight += __shfl_xor_sync(0xffffffffu, weight, 1);
    weight += __shfl_xor_sync(0xffffffffu, weight, 2);
    const int token = own_first + row + 8 * r;
    if (token >= p.tokens) continue;
    T* const y = p.y + ((static_cast<int64_t>(sequence) * p.tokens + token) * p.heads + head) * kHeadDim;
    const float scale = 1.f / weight;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      *reinterpret_cast<uint32_t*>(y + 8 * n + 2 * t) =
          pair_as(sums[4 * n + 2 * r] * scale, sums[4 * n + 2 * r + 1] * scale, T{});
    }
  }
}

}  // namespace

template <int kHeadDim, typename T>
cudaError_t launch_warpgroup_attention(const AttentionParams<T>& params, int batch, cudaStream_t stream) {
  const int slots = batch * params.kv_heads * params.capacity;
  CUtensorMap query_map, key_map, value_map;
  const auto make = [](const T* data, int rows, int columns, CUtensorMap* map) {
    return make_tensor_map({data, 2, rows, columns, kSlots, kBoxChannels, true}, map);
  };
  cudaError_t status = make(params.queries, batch * params.tokens, params.heads * kHeadDim, &query_map);
  if (status == cudaSuccess) status = make(params.keys, slots, kHeadDim, &key_map);
  if (status == cudaSuccess) status = make(params.values, slots, kHeadDim, &value_map);
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>((params.tokens + kQueries - 1) / kQueries), static_cast<unsigned>(params.heads),
                  static_cast<unsigned>(batch));
  return launch_kernel(warpgroup_attention_kernel<kHeadDim, T>, grid, kThreads, Shared<kHeadDim>::kBytes, false, stream,
                       params, query_map, key_map, value_map);
}

template cudaError_t launch_warpgroup_attention<64>(const AttentionParams<__half>&, int, cudaStream_t);
template cudaError_t launch_warpgroup_attention<64>(const AttentionParams<__nv_bfloat16>&, int, cudaStream_t);
template cudaError_t launch_warpgroup_attention<128>(const AttentionParams<__half>&, int, cudaStream_t);
template cudaError_t launch_warpgroup_attention<128>(const AttentionParams<__nv_bfloat16>&, int, cudaStream_t);

}  // namespace awq2trt

#endif  // AWQ2TRT_HOPPER
