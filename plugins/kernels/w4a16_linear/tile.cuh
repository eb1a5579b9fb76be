// One block's tile of y = x * W^T: the phases that tile_kernel.cu puts in order; the reasons are there.
//
// In:  the call's tensors, and shared memory for the stages of the pipeline and for the finished tile.
// Out: the tile's part of y, or this split's fp32 sums of it in the workspace.
#pragma once

#include <cstdint>

#include "kernels/device/async_copy.cuh"
#include "kernels/device/convert.cuh"
#include "kernels/device/half_pair.h"
#include "kernels/device/tensor_core.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/dequantize.h"
#include "kernels/w4a16_linear/kernel_params.cuh"
#include "kernels/w4a16_linear/tile_shapes.h"

namespace awq2trt {

// What a lane needs to know of one row and group.
template <typename T>
struct alignas(8) ScaleAndZero {
  uint32_t scale;  // both halves
  OrderedZeroPoint<T> zero;
};

// The B operands of two token tiles for 16 k, the rows of 8 activations at the lanes' addresses in shared memory.
__device__ __forceinline__ void load_matrices(uint2& first, uint2& second, uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(first.x), "=r"(first.y), "=r"(second.x), "=r"(second.y)
               : "r"(address)
               : "memory");
}

// Copies a thread's codes of one stage where rows start at multiples of 4 bytes only: K is no multiple of 32, or the
// tensor is not aligned. Not inlined, and no method, so that it takes no registers from the usual case.
template <int kBlockK, int kRows, int kRowsAtOnce>
__device__ __noinline__ void fetch_unaligned_codes(uint32_t target, const uint8_t* source, int row_bytes, int k_left,
                                                   int valid_rows) {
  for (int row = 0; row < kRows; row += kRowsAtOnce) {
    for (int j = 0; j < 4; ++j)
      copy_4_async(target + j * 4, source + j * 4, j * kCodesPerWord < k_left && row < valid_rows);
    target += kRowsAtOnce * kBlockK / 2;
    source += kRowsAtOnce * static_cast<int64_t>(row_bytes);
  }
}

// One block's tile. The methods are the phases of its main loop.
//
// kPlain: rows of codes are aligned to 16 bytes, K is a multiple of a stage's, and a stage lies within one group. Then
// the main loop has no branch, and the compiler can put everything else between the products.
template <typename T, TileShape kShape, bool kPlain>
class Tile {
 public:
  static constexpr TileTraits kTraits = traits_of(kShape);
  static constexpr int kRows = kTraits.rows(), kTokens = kTraits.tokens(), kThreads = kTraits.threads();
  static constexpr int kBlockK = kTraits.block_k, kStages = kTraits.stages;
  static constexpr int kRowTiles = kTraits.row_tiles, kTokenTiles = kTraits.token_tiles;
  // A warp takes k in units of 32: 16 bytes of codes a row, two mma steps.
  static constexpr int kUnits = kTraits.chunks() / kTraits.k_warps;  // of a stage
  static_assert(kUnits * kTraits.k_warps == kTraits.chunks(), "warps split a stage's k evenly");
  static constexpr int kTokenGroup = kTokenTiles < kTraits.token_group ? kTokenTiles : kTraits.token_group;
  static constexpr int kTokenGroups = kTokenTiles / kTokenGroup;
  static_assert(kTokenGroup * kTokenGroups == kTokenTiles && kTokenGroup % 2 == 0, "whole groups, of pairs");
  static constexpr int kRowScales = kPlain ? 1 : kTraits.chunks();  // of a stage
  static constexpr int kScales = kRows * kRowScales;
  static constexpr int kThreadScales = kScales > kThreads ? kScales / kThreads : 1;
  static_assert(kScales <= kThreads || kScales % kThreads == 0, "threads fetch equally many scales");
  static_assert(kRowScales % kThreadScales == 0, "a thread's scales are of one row");

  __device__ __forceinline__ Tile(const LinearParams<T>& params, GroupOfChunk group_of_chunk, uint8_t* shared,
                                  int k_per_split)
      : p(params),
        group_of_chunk_(group_of_chunk),
        shared_(shared),
        shared_address_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))) {
    // Read once: without `volatile` the compiler reads the special register again in every stage, and waits for it.
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread_));
    const int first_k = blockIdx.z * k_per_split, end_k = min(first_k + k_per_split, p.k);
    stages_ = (end_k - first_k + kBlockK - 1) / kBlockK;
    const uint32_t warp = thread_ / kWarpSize, lane = thread_ % kWarpSize;
    lane_row_ = lane / 4;
    lane_chunk_ = lane % 4;
    warp_k_ = warp % kTraits.k_warps;
    warp_tokens_ = warp / kTraits.k_warps % kTraits.token_warps * kTokenTiles * kTokenTile;
    warp_rows_ = warp / (kTraits.k_warps * kTraits.token_warps) * kRowTiles * kRowTile;

    // What this thread copies: the threads of a block take complete rows side by side, kTokensAtOnce or kRowsAtOnce of
    // them at a time, so only the row changes from round to round, and only k from stage to stage.
    const int token = thread_ / kXVectors, x_k = thread_ % kXVectors * 8;
    const int row = thread_ / kTraits.chunks(), code_k = thread_ % kTraits.chunks() * kCodesPerLoad;
    x_source_ =
        reinterpret_cast<const uint8_t*>(p.x + static_cast<int64_t>(first_token() + token) * p.k + first_k + x_k);
    code_target_ = (row * kTraits.chunks() + code_chunk(row, thread_ % kTraits.chunks())) * 16;
    code_source_ = p.codes + (static_cast<int64_t>(first_row() + row) * p.k + first_k + code_k) / 2;
    valid_tokens_ = p.m - first_token() - token;
    valid_rows_ = p.n - first_row() - row;
    k_left_ = end_k - first_k;
    x_target_ = shared_address_ + x_position(token, x_k / 8);

    // The scales that it fetches, always of a row that exists.
    const int entry = thread_ * kThreadScales;
    scale_k_ = first_k;
    // first_row() is even, so its zero points start at a whole byte.
    scale_offset_ = static_cast<uint32_t>(min(entry / kRowScales, p.n - 1 - first_row()) * p.groups);

    // What this lane reads. ldmatrix takes a pair of token tiles: lanes 0 to 7 give the addresses of the rows of the
    // first tile's first 8 k, and so on.
    const int x_row = warp_tokens_ + lane / 16 * kTokenTile + lane % 8;
    x_lane_ = shared_address_ + x_position(x_row, warp_k_ * kUnits * 4 + lane / 8 % 2);
    code_lane_ = kStages * kTraits.x_bytes() + (warp_rows_ + lane_row_) * (kBlockK / 2);
    scale_lane_ = kScalesAt + sizeof(ScaleAndZero<T>) * (warp_rows_ + lane_row_) * kRowScales;
    byte_selector_ = byte_selector(lane_chunk_);
  }

  __device__ __forceinline__ int stage_count() const { return stages_; }

  // Starts the copies of the next stage, into a slot of the pipeline; past the last stage it fills in zeros.
  __device__ __forceinline__ void fetch(int slot) {
    fetch_activations(x_target_ + slot * kTraits.x_bytes());
    const uint32_t target = shared_address_ + kStages * kTraits.x_bytes() + slot * kTraits.code_bytes() + code_target_;
    if (kPlain || p.codes_aligned) {
      fetch_codes(target);
    } else {
      fetch_unaligned_codes<kBlockK, kRows, kRowsAtOnce>(target, code_source_, p.k / 2, k_left_ - thread_code_k(),
                                                         valid_rows_);
    }
    commit_copies();
    x_source_ += 2 * kBlockK;
    code_source_ += kBlockK / 2;
    k_left_ -= kBlockK;
  }

  // Starts to load the next stage's scales and zero points into registers.
  __device__ __forceinline__ void fetch_scales() {
    const auto* const scales = reinterpret_cast<const unsigned short*>(p.scales) + first_scale();
    const uint8_t* const zeros = p.zeros + first_scale() / 2;
#pragma unroll
    for (int i = 0; i < kThreadScales; ++i) {
      const int chunk = (kPlain ? 0 : thread_ * kThreadScales % kRowScales) + i;
      const int group = group_of_chunk_(scale_k_ / kCodesPerLoad + chunk);
      scale_index_[i] = scale_offset_ + min(group, p.groups - 1);  // past K: any, the activations are 0
      if (kScales < kThreads && thread_ >= kScales) continue;
      scale_bits_[i] = __ldg(scales + scale_index_[i]);
      if (p.zeros != nullptr) zero_byte_[i] = __ldg(zeros + scale_index_[i] / 2);
    }
    scale_k_ += kBlockK;
  }

  // Puts what fetch_scales() brought into one of the two places in shared memory.
  __device__ __forceinline__ void store_scales(int place) {
    if (kScales < kThreads && thread_ >= kScales) return;
#pragma unroll
    for (int i = 0; i < kThreadScales; ++i) {
      const uint32_t nibble = p.zeros != nullptr ? nibble_of(zero_byte_[i], scale_index_[i]) : 0;
      const uint32_t target = shared_address_ + kScalesAt + place * kScaleBytes +
                              (thread_ * kThreadScales + i) * static_cast<uint32_t>(sizeof(ScaleAndZero<T>));
      asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(target), "r"(scale_bits_[i] * kBothHalves),
                   "r"(OrderedZeroPoint<T>::from_nibble(nibble).bits)
                   : "memory");
    }
  }

  // Runs before the main loop, once the first stage has arrived: loads its scales, codes and first activations, and
  // dequantizes its first step.
  __device__ __forceinline__ void begin() {
    load_scales(0, 0);
    load_codes(0, 0);
    load_activations(0, 0, 0);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) dequantize_rows(r, 0);
  }

  // One stage. Everything is one step ahead of the products that need it: a step is dequantized while the previous one
  // is multiplied, and a stage's first step during the last of the previous stage, so that the barrier falls into the
  // middle of work.
  __device__ __forceinline__ void multiply(int stage, int slot) {
    const int next_slot = slot + 1 == kStages ? 0 : slot + 1;
#pragma unroll
    for (int step = 0; step < 2 * kUnits; ++step) {
      const bool last = step == 2 * kUnits - 1;
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int i = 0; i < kRowTiles * 4; ++i) a[i / 4][i % 4] = next_a_[i / 4][i % 4];
      if (last) {
        wait_for_copies<kStages - 3>();
        __syncthreads();  // the next stage has arrived for all threads, and all are done with the previous one
        load_codes(next_slot, 0);
        load_scales(1 - stage % 2, 0);
      } else if (step % 2 == 1) {
        load_codes(slot, step / 2 + 1);
        if (!kPlain) load_scales(stage % 2, step / 2 + 1);
      }
#pragma unroll
      for (int group = 0; group < kTokenGroups; ++group) {
        uint2 b[kTokenGroup];
#pragma unroll
        for (int i = 0; i < kTokenGroup; ++i) b[i] = next_b_[i];
        if (group + 1 < kTokenGroups) {
          load_activations(slot, step, group + 1);
        } else if (!last) {
          load_activations(slot, step + 1, 0);
        } else {
          load_activations(next_slot, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < kTokenGroup; ++i) {
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) mma_16x8x16(c_[group * kTokenGroup + i][r], a[r], b[i].x, b[i].y, T{});
        }
        // Done between the products, where it costs least.
#pragma unroll
        for (int r = group * kRowTiles / kTokenGroups; r < (group + 1) * kRowTiles / kTokenGroups; ++r)
          dequantize_rows(r, (step + 1) % 2);
        if (last && group == 0) fetch(slot == 0 ? kStages - 1 : slot - 1);
        if (last && group == kTokenGroups / 2) {
          store_scales(stage % 2);
          fetch_scales();
        }
      }
    }
  }

  // Adds the tiles of the warps that split k, last to first, in shared memory.
  __device__ __forceinline__ void gather_sums() {
    float* const sums = reinterpret_cast<float*>(shared_);
#pragma unroll
    for (int k_warp = kTraits.k_warps - 1; k_warp >= 0; --k_warp) {
      __syncthreads();
      if (warp_k_ != k_warp) continue;
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
          for (int v = 0; v < 4; ++v) {
            const int token = warp_tokens_ + i * kTokenTile + 2 * lane_chunk_ + v % 2;
            const int row = warp_rows_ + r * kRowTile + lane_row_ + 8 * (v / 2);
            float* const sum = sums + token * kTraits.sum_stride() + row;
            *sum = k_warp == kTraits.k_warps - 1 ? c_[i][r][v] : *sum + c_[i][r][v];
          }
        }
      }
    }
    __syncthreads();
  }

  // Writes y: 8 rows of W (16 bytes) per thread where N keeps that aligned.
  __device__ __forceinline__ void write_outputs() const {
    constexpr int kVector = 8;
    const float* const sums = reinterpret_cast<const float*>(shared_);
    if (p.n % kVector == 0) {
      for (int i = thread_; i < kTokens * kRows / kVector; i += kThreads) {
        const int token = i / (kRows / kVector), row = i % (kRows / kVector) * kVector;
        if (first_token() + token >= p.m || first_row() + row >= p.n) continue;
        union {
          T y[kVector];
          uint4 vector;
        } out = {};
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          const float bias = p.bias != nullptr ? to_float(p.bias[first_row() + row + v]) : 0.f;
          out.y[v] = from_float<T>(sums[token * kTraits.sum_stride() + row + v] + bias);
        }
        *reinterpret_cast<uint4*>(p.y + output_index(token, row)) = out.vector;
      }
    } else {
      for (int i = thread_; i < kTokens * kRows; i += kThreads) {
        const int token = i / kRows, row = i % kRows;
        if (first_token() + token >= p.m || first_row() + row >= p.n) continue;
        const float bias = p.bias != nullptr ? to_float(p.bias[first_row() + row]) : 0.f;
        p.y[output_index(token, row)] = from_float<T>(sums[token * kTraits.sum_stride() + row] + bias);
      }
    }
  }

  // Writes this split's sums, [splits, M, N] fp32, for add_splits_kernel().
  __device__ __forceinline__ void write_partial_sums() const {
    const float* const sums = reinterpret_cast<const float*>(shared_);
    float* const target = p.partial_sums + static_cast<int64_t>(blockIdx.z) * p.m * p.n;
    for (int i = thread_; i < kTokens * kRows; i += kThreads) {
      const int token = i / kRows, row = i % kRows;
      if (first_token() + token >= p.m || first_row() + row >= p.n) continue;
      target[output_index(token, row)] = sums[token * kTraits.sum_stride() + row];
    }
  }

 private:
  // Byte offset of 8 activations, 16 bytes: vector `v` of a token's row. ldmatrix reads the same vector of 8 tokens;
  // the swaps put these into different banks, and move nothing further than 128 bytes, so that copies from global
  // memory stay contiguous.
  __device__ __forceinline__ static int x_position(int token, int v) {
    return token * (kBlockK * 2) + (v ^ (token & 7)) * 16;
  }

  // Likewise the byte offset of a row's 16 bytes of codes; a warp reads those of 8 rows at a time.
  __device__ __forceinline__ static int code_chunk(int row, int chunk) {
    return chunk ^ (row * kTraits.chunks() / 8) % kTraits.chunks();
  }

  static constexpr int kXVectors = kBlockK / 8;  // of 16 bytes, in a stage's row of x
  static constexpr int kTokensAtOnce = kThreads / kXVectors;
  static constexpr int kRowsAtOnce = kThreads / kTraits.chunks();
  static_assert(kThreads % kXVectors == 0 && kTokensAtOnce % 8 == 0,
                "what x_position() swaps by is a thread's for good");
  static_assert(kThreads % kTraits.chunks() == 0 && kRowsAtOnce % 8 == 0, "and so is what code_chunk() does");
  static_assert(kRows % kRowsAtOnce == 0, "and whole tiles");
  // The k within a stage at which a thread's copies begin, which tells whether they are past K. If K is a multiple of a
  // stage's, only complete stages can be past it.
  __device__ __forceinline__ int thread_x_k() const { return kPlain ? 0 : thread_ % kXVectors * 8; }
  __device__ __forceinline__ int thread_code_k() const {
    return kPlain ? 0 : thread_ % kTraits.chunks() * kCodesPerLoad;
  }
  static constexpr uint32_t kScaleBytes = kTraits.scale_bytes();
  static constexpr uint32_t kScalesAt = kStages * (kTraits.x_bytes() + kTraits.code_bytes());

  __device__ __forceinline__ void fetch_activations(uint32_t target) const {
    const int valid_tokens = k_left_ > thread_x_k() ? valid_tokens_ : 0;
    const uint8_t* source = x_source_;
#pragma unroll
    for (int token = 0; token < kTokens; token += kTokensAtOnce) {
      if (kTokens % kTokensAtOnce != 0 && token + static_cast<int>(thread_) / kXVectors >= kTokens) break;
      copy_16_async(target + token * kBlockK * 2, source, token < valid_tokens);
      source += static_cast<uint32_t>(kTokensAtOnce * 2 * p.k);
    }
  }

  __device__ __forceinline__ void fetch_codes(uint32_t target) const {
    const int valid_rows = k_left_ > thread_code_k() ? valid_rows_ : 0;
    const uint8_t* source = code_source_;
#pragma unroll
    for (int row = 0; row < kRows; row += kRowsAtOnce) {
      copy_16_async(target + row * kBlockK / 2, source, row < valid_rows);
      source += static_cast<uint32_t>(kRowsAtOnce / 2 * p.k);
    }
  }

  __device__ __forceinline__ void load_scales(int place, int unit) {
    const uint8_t* const scale = shared_ + scale_lane_ + place * kScaleBytes;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int entry = (r * kRowTile + half * 8) * kRowScales + (kPlain ? 0 : warp_k_ * kUnits + unit);
        scale_[r][half] = reinterpret_cast<const ScaleAndZero<T>*>(scale)[entry];
      }
    }
  }

  __device__ __forceinline__ void load_codes(int slot, int unit) {
    const int chunk = code_chunk(lane_row_, warp_k_ * kUnits + unit);
    const uint8_t* const codes = shared_ + code_lane_ + slot * kTraits.code_bytes() + chunk * 16;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        words_[r][half] = *reinterpret_cast<const Words*>(codes + (r * kRowTile + half * 8) * (kBlockK / 2));
    }
  }

  // Loads the activations of a group of token tiles.
  __device__ __forceinline__ void load_activations(int slot, int step, int group) {
    const uint32_t x =
        (x_lane_ ^ (step * 32)) + slot * kTraits.x_bytes() + group * (kTokenGroup * kTokenTile * kBlockK * 2);
#pragma unroll
    for (int i = 0; i < kTokenGroup; i += 2)
      load_matrices(next_b_[i], next_b_[i + 1], x + i * (kTokenTile * kBlockK * 2));
  }

  // An mma operand. A lane's k are those of its byte in each of two words.
  __device__ __forceinline__ void dequantize_rows(int r, int step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const ScaleAndZero<T>& scale = scale_[r][i % 2];
      const uint32_t pair = dequantize_byte(words_[r][i % 2].word[step * 2 + i / 2], byte_selector_, scale.zero);
      next_a_[r][i] = scale_pair<T>(pair, scale.scale);
    }
  }

  __device__ __forceinline__ int64_t output_index(int token, int row) const {
    return static_cast<int64_t>(first_token() + token) * p.n + first_row() + row;
  }

  // Position of the block. Blocks that share codes, because they differ in tokens only, are neighbours and find the
  // codes in the L2 cache.
  __device__ __forceinline__ static int first_token() { return blockIdx.x * kTokens; }
  __device__ __forceinline__ static int first_row() { return blockIdx.y * kRows; }
  __device__ __forceinline__ int64_t first_scale() const { return static_cast<int64_t>(first_row()) * p.groups; }

  struct alignas(16) Words {
    uint32_t word[4];
  };

  const LinearParams<T>& p;
  const GroupOfChunk group_of_chunk_;
  uint8_t* const shared_;
  const uint32_t shared_address_;
  uint32_t thread_;
  int stages_;
  int warp_tokens_, warp_rows_, warp_k_;  // of the warp, within the block
  int lane_row_, lane_chunk_;             // g and t of tensor_core.cuh

  // State of the thread: what it copies next, and what is under way.
  const uint8_t* x_source_;
  const uint8_t* code_source_;
  uint32_t x_target_, code_target_;
  int valid_tokens_, valid_rows_, k_left_, scale_k_;
  uint32_t scale_offset_;  // of its row of scales, within the block's
  uint32_t scale_index_[kThreadScales], scale_bits_[kThreadScales], zero_byte_[kThreadScales];

  // State of the lane: what it reads, as offsets in shared memory, and what it has read.
  uint32_t x_lane_, code_lane_, scale_lane_, byte_selector_;
  ScaleAndZero<T> scale_[kRowTiles][2];
  Words words_[kRowTiles][2];
  uint32_t next_a_[kRowTiles][4];
  uint2 next_b_[kTokenGroup];
  float c_[kTokenTiles][kRowTiles][4] = {};
};

}  // namespace awq2trt
