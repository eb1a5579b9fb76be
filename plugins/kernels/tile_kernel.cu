// y = x * W^T for more than a few tokens, on the tensor cores.
//
// - A block computes a tile of tokens x weight rows and walks along K in stages. cp.async keeps stages - 1 of them in
//   flight, activations and codes alike in the order they have in memory.
// - Codes become mma operands in registers. A lane takes its 16 or 32 consecutive k of a row, the same k of its token,
// and
//   swaps the activations into the pairs that dequantization makes (four byte permutes for 8 activations), once for all
//   the weight rows of the warp. A sum over k may be taken in any order, so nothing has to be repacked.
// - Scales and zero points are fetched two stages ahead by one thread each and wait in shared memory in the form the
//   multiplication wants. Weights are scaled in T (half an ulp of error) before the product; sums are fp32.
// - A finished tile goes through shared memory: there the warps that split k add up, in a fixed order, and from there
//   whole rows of y are written. Where the tiles alone cannot fill the device, blocks split K as well, leave fp32 sums
//   in the workspace, and a second kernel adds them in order.
#include "kernel_params.cuh"
#include "overlap.cuh"
#include "tensor_core.cuh"
#include "tile_shapes.h"

#include <type_traits>

namespace awq2trt {
namespace {

// Prepared once for 16 bytes of codes.
struct alignas(8) ScaleAndZero {
  uint32_t scale;     // both halves
  uint32_t zero_low;  // ZeroPoint::low
};

// 16 bytes to shared memory; zeros where `valid` is false, and then `source`, which may point anywhere, is not read.
__device__ __forceinline__ void copy_16_async(uint32_t target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_4_async(uint32_t target, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(source), "r"(valid ? 4 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of the youngest groups are still under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Codes of one stage where rows start at multiples of 4 bytes only: K is no multiple of 32, or the tensor lies badly.
// Not inlined, and no method, so that it takes no registers from the usual case.
template <int kBlockK, int kRows, int kRowsAtOnce>
__device__ __noinline__ void fetch_unaligned_codes(uint32_t target, const uint8_t* source, int row_bytes, int k_left,
                                                   int valid_rows) {
  constexpr int kChunks = kBlockK / kCodesPerLoad;
  const int k = threadIdx.x % kChunks * kCodesPerLoad;
  target += threadIdx.x * 16;
  for (int row = threadIdx.x / kChunks; row < kRows; row += kRowsAtOnce) {
    for (int j = 0; j < 4; ++j) {
      copy_4_async(target + j * 4, source + j * 4, k + j * kCodesPerWord < k_left && row < valid_rows);
    }
    target += kRowsAtOnce * kBlockK / 2;
    source += kRowsAtOnce * static_cast<int64_t>(row_bytes);
  }
}

// One block's tile. The methods are the phases of its main loop.
template <typename T, TileShape kShape>
class Tile {
 public:
  static constexpr TileTraits kTraits = traits_of(kShape);
  static constexpr int kRows = kTraits.rows(), kTokens = kTraits.tokens(), kThreads = kTraits.threads();
  static constexpr int kBlockK = kTraits.block_k, kStages = kTraits.stages;
  static constexpr int kRowTiles = kTraits.row_tiles, kTokenTiles = kTraits.token_tiles;
  static constexpr int kLaneWords = kBlockK / 4 / kCodesPerWord;  // words of a row and stage that one lane takes
  static_assert(kLaneWords == 2 || kLaneWords == 4, "x_position() knows stages of 64 and 128 k");
  static constexpr int kWarpWords = kLaneWords / kTraits.k_warps;  // of these, the ones that this warp's k has
  static constexpr int kScaleEntries = kRows * kTraits.chunks();
  static constexpr int kScalesPerThread = kScaleEntries > kThreads ? kScaleEntries / kThreads : 1;
  static_assert(kWarpWords * kTraits.k_warps == kLaneWords, "warps split a lane's words evenly");
  static_assert(kScaleEntries <= kThreads || kScaleEntries % kThreads == 0, "threads fetch equally many scales");
  static_assert(kTraits.chunks() % kScalesPerThread == 0, "a thread's scales are of one row");

  __device__ __forceinline__ Tile(const LinearParams<T>& params, GroupOfChunk group_of_chunk, bool one_group_per_stage,
                                  uint8_t* shared, int k_per_split)
      : p(params),
        group_of_chunk_(group_of_chunk),
        shared_(shared),
        shared_address_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))) {
    // Read once: without `volatile` the compiler reads the special register anew in every stage, and waits for it.
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread_));
    first_k_ = blockIdx.z * k_per_split;
    end_k_ = min(first_k_ + k_per_split, p.k);
    const int warp = thread_ / kWarpSize, lane = thread_ % kWarpSize;
    lane_row_ = lane / 4;
    lane_chunk_ = lane % 4;
    warp_k_ = warp % kTraits.k_warps;
    warp_tokens_ = warp / kTraits.k_warps % kTraits.token_warps * kTokenTiles * kTokenTile;
    warp_rows_ = warp / (kTraits.k_warps * kTraits.token_warps) * kRowTiles * kRowTile;

    // What this thread copies: the threads of a block take whole rows side by side, kTokensAtOnce or kRowsAtOnce of
    // them at a time, so all that changes from round to round is the row, and from stage to stage k.
    x_offset_ = static_cast<uint32_t>(thread_token() * p.k + first_k_ + thread_x_k());
    code_offset_ = static_cast<uint32_t>(thread_code_row() * p.k + first_k_ + thread_code_k()) / 2;

    // The scales it fetches: of one row, and of a row that exists. A stage that lies within one group needs one a row.
    one_group_per_stage_ = one_group_per_stage;
    const int entry = thread_ * (one_group_per_stage ? kTraits.chunks() : kScalesPerThread);
    scale_entry_ = entry;
    scale_chunk_ = first_k_ / kCodesPerLoad + entry % kTraits.chunks();
    // first_row() is even, so its zero points start at a whole byte.
    scale_offset_ = static_cast<uint32_t>(min(entry / kTraits.chunks(), p.n - 1 - first_row()) * p.groups);
  }

  __device__ __forceinline__ int stage_count() const { return (end_k_ - first_k_ + kBlockK - 1) / kBlockK; }

  // Starts the copies of one stage into a slot of the pipeline; past the last stage there is nothing to copy.
  __device__ __forceinline__ void fetch_to_shared(int stage, int slot) {
    const int fetched_k = stage * kBlockK, k_left = end_k_ - first_k_ - fetched_k;
    if (k_left > 0) {
      fetch_activations(shared_address_ + x_stage(slot), x_offset_ + fetched_k, k_left);
      const uint32_t code_offset = code_offset_ + fetched_k / 2;
      if (p.codes_aligned) {
        fetch_codes(shared_address_ + code_stage(slot), code_offset, k_left);
      } else {
        const uint8_t* const source = p.codes + static_cast<int64_t>(first_row()) * (p.k / 2) + code_offset;
        fetch_unaligned_codes<kBlockK, kRows, kRowsAtOnce>(shared_address_ + code_stage(slot), source, p.k / 2, k_left,
                                                           p.n - first_row());
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ void fetch_scales_to_registers(int stage) {
    if (scale_entry_ >= kScaleEntries) return;
    const int chunk = scale_chunk_ + stage * kTraits.chunks();
#pragma unroll
    for (int i = 0; i < kScalesPerThread; ++i) {
      if (i > 0 && one_group_per_stage_) break;
      const uint32_t group = min(group_of_chunk_(chunk + i), p.groups - 1);  // past K: any, the activations are 0
      const int64_t first = static_cast<int64_t>(first_row()) * p.groups;
      scale_bits_[i] = __ldg(reinterpret_cast<const unsigned short*>(p.scales) + first + (scale_offset_ + group));
      if (p.zeros != nullptr) zero_byte_[i] = __ldg(p.zeros + first / 2 + (scale_offset_ + group) / 2);
    }
  }

  // `stage` must be the one that was fetched last.
  __device__ __forceinline__ void store_scales_to_shared(int stage) {
    if (scale_entry_ >= kScaleEntries) return;
    const int chunk = scale_chunk_ + stage * kTraits.chunks();
    ScaleAndZero* const target = scale_stage(stage % 2) + scale_entry_;
#pragma unroll
    for (int i = 0; i < kScalesPerThread; ++i) {
      if (i > 0 && one_group_per_stage_) break;
      uint32_t nibble = 0;
      if (p.zeros != nullptr) {
        const uint32_t group = min(group_of_chunk_(chunk + i), p.groups - 1);
        nibble = nibble_of(zero_byte_[i], scale_offset_ + group);
      }
      target[i] = {scale_bits_[i] * kBothHalves, ZeroPoint<T>::from_nibble(nibble).low};
    }
  }

  __device__ __forceinline__ void multiply(int stage, int slot) {
    const uint8_t* const codes = shared_ + code_stage(slot);
    const uint8_t* const x = shared_ + x_stage(slot);
    const ScaleAndZero* const scales = scale_stage(stage % 2);

    const int lane_scale = one_group_per_stage_ ? 0 : lane_chunk_ * kTraits.chunks() / 4;
    struct alignas(4 * kWarpWords) Words {
      uint32_t word[kWarpWords];
    };
    Words words[kRowTiles][2];
    ScaleAndZero scale[kRowTiles][2];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_rows_ + r * kRowTile + half * 8 + lane_row_;
        const int offset = row * (kBlockK / 2) + (lane_chunk_ * kLaneWords + warp_k_ * kWarpWords) * 4;
        words[r][half] = *reinterpret_cast<const Words*>(codes + offset);
        scale[r][half] = scales[row * kTraits.chunks() + lane_scale];
      }
    }
#pragma unroll
    for (int j = 0; j < kWarpWords; ++j) {
      uint32_t a[kRowTiles][2][4];  // two mma operands a word: its first and its last two pairs
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const ZeroPoint<T> zero = ZeroPoint<T>::from_low(scale[r][half].zero_low);
          const CodePairs pairs = dequantize_word(words[r][half].word[j], zero);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            a[r][i / 2][i % 2 * 2 + half] = scale_pair<T>(pairs.pair[i], scale[r][half].scale);
        }
      }
      const uint8_t* const x_lane =
          x + x_position(warp_tokens_ + lane_row_, lane_chunk_ * kLaneWords + warp_k_ * kWarpWords + j);
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const uint4 b = pair_activations(
            *reinterpret_cast<const uint4*>(x_lane + i * kTokenTile * static_cast<int>(kBlockK * sizeof(T))));
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) mma_16x8x16(c_[i][r], a[r][0], b.x, b.y, T{});
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) mma_16x8x16(c_[i][r], a[r][1], b.z, b.w, T{});
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

  // y, 8 rows of W (16 bytes) a thread where N keeps that aligned.
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

  // This split's sums, [splits, M, N] fp32, for add_splits_kernel().
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
  // Byte offset of 8 activations, 16 bytes: vector `v` of a token's row. The 8 lanes that share an access read the same
  // word j of two tokens' four chunks, vectors 2t + j or 4t + j; the swaps put these into different banks, and move
  // nothing further than 64 bytes, so that copies from global memory stay whole.
  __device__ __forceinline__ static int x_position(int token, int v) {
    constexpr bool kShortChunks = kLaneWords == 2;
    const int swap = kShortChunks ? token & 1 : (v >> 3) ^ (token & 1) << 1;
    return token * (kBlockK * 2) + (v ^ swap) * 16;
  }

  static constexpr int kXVectors = kBlockK / 8;  // of 16 bytes, in a stage's row of x
  static constexpr int kTokensAtOnce = kThreads / kXVectors;
  static constexpr int kRowsAtOnce = kThreads / kTraits.chunks();
  static_assert(kThreads % kXVectors == 0 && kTokensAtOnce % 2 == 0, "a round copies whole pairs of tokens");
  static_assert(kThreads % kTraits.chunks() == 0, "a round copies whole rows");
  __device__ __forceinline__ int thread_token() const { return thread_ / kXVectors; }
  __device__ __forceinline__ int thread_x_k() const { return thread_ % kXVectors * 8; }
  __device__ __forceinline__ int thread_code_row() const { return thread_ / kTraits.chunks(); }
  __device__ __forceinline__ int thread_code_k() const { return thread_ % kTraits.chunks() * kCodesPerLoad; }

  __device__ __forceinline__ void fetch_activations(uint32_t target, uint32_t offset, int k_left) const {
    const int valid_tokens = thread_x_k() < k_left ? p.m - first_token() - thread_token() : 0;
    const T* const block = p.x + static_cast<int64_t>(first_token()) * p.k;
    target += x_position(thread_token(), thread_x_k() / 8);
#pragma unroll
    for (int token = 0; token < kTokens; token += kTokensAtOnce) {
      if (kTokens % kTokensAtOnce != 0 && token + thread_token() >= kTokens) break;
      copy_16_async(target + token * kBlockK * 2, block + offset, token < valid_tokens);
      offset += kTokensAtOnce * p.k;
    }
  }

  __device__ __forceinline__ void fetch_codes(uint32_t target, uint32_t offset, int k_left) const {
    const int valid_rows = thread_code_k() < k_left ? p.n - first_row() - thread_code_row() : 0;
    const uint8_t* const block = p.codes + static_cast<int64_t>(first_row()) * (p.k / 2);
    target += thread_ * 16;
#pragma unroll
    for (int row = 0; row < kRows; row += kRowsAtOnce) {
      if (kRows % kRowsAtOnce != 0 && row + thread_code_row() >= kRows) break;
      copy_16_async(target + row * kBlockK / 2, block + offset, row < valid_rows);
      offset += kRowsAtOnce * (p.k / 2);
    }
  }

  __device__ __forceinline__ int64_t output_index(int token, int row) const {
    return static_cast<int64_t>(first_token() + token) * p.n + first_row() + row;
  }

  // Of the block. Blocks that share codes, which differ in tokens only, are neighbours, and meet in the L2 cache.
  __device__ __forceinline__ static int first_token() { return blockIdx.x * kTokens; }
  __device__ __forceinline__ static int first_row() { return blockIdx.y * kRows; }

  // Offsets in shared memory.
  __device__ __forceinline__ static uint32_t x_stage(int slot) { return slot * kTraits.x_bytes(); }
  __device__ __forceinline__ static uint32_t code_stage(int slot) {
    return kStages * kTraits.x_bytes() + slot * kTraits.code_bytes();
  }
  __device__ __forceinline__ ScaleAndZero* scale_stage(int slot) const {
    return reinterpret_cast<ScaleAndZero*>(shared_ + kStages * (kTraits.x_bytes() + kTraits.code_bytes()) +
                                           slot * kTraits.scale_bytes());
  }

  const LinearParams<T>& p;
  const GroupOfChunk group_of_chunk_;
  uint8_t* const shared_;
  const uint32_t shared_address_;
  int thread_;
  int first_k_, end_k_;                   // of the block
  int warp_tokens_, warp_rows_, warp_k_;  // of the warp, within the block
  int lane_row_, lane_chunk_;             // g and t of tensor_core.cuh
  uint32_t x_offset_, code_offset_;       // of the thread: what it copies first, within the block's rows
  bool one_group_per_stage_;
  int scale_entry_, scale_chunk_;
  uint32_t scale_offset_;  // of its row of scales, within the block's
  float c_[kTokenTiles][kRowTiles][4] = {};
  uint32_t scale_bits_[kScalesPerThread];
  uint32_t zero_byte_[kScalesPerThread];
};

template <typename T, TileShape kShape>
__global__ void __launch_bounds__(traits_of(kShape).threads(), traits_of(kShape).blocks)
    tile_kernel(LinearParams<T> params, GroupOfChunk group_of_chunk, bool one_group_per_stage, int k_per_split) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (traits_of(kShape).min_sm > 80) return;  // choose_config() never asks for it; this leaves no code
#endif
  extern __shared__ __align__(16) uint8_t shared[];
  Tile<T, kShape> tile(params, group_of_chunk, one_group_per_stage, shared, k_per_split);
  constexpr int kStages = traits_of(kShape).stages;
  const int stages = tile.stage_count();

  let_next_kernel_start();
  wait_for_previous_kernel();
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) tile.fetch_to_shared(stage, stage);
  tile.fetch_scales_to_registers(0);
  tile.store_scales_to_shared(0);
  tile.fetch_scales_to_registers(1);

  int slot = 0;
  for (int stage = 0; stage < stages; ++stage) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // this stage is there for all, and all are done with the one before, whose place is taken now
    tile.fetch_to_shared(stage + kStages - 1, slot == 0 ? kStages - 1 : slot - 1);
    tile.store_scales_to_shared(stage + 1);
    tile.fetch_scales_to_registers(stage + 2);
    tile.multiply(stage, slot);
    slot = slot + 1 == kStages ? 0 : slot + 1;
  }

  wait_for_copies<0>();
  tile.gather_sums();
  if (gridDim.z == 1) {
    tile.write_outputs();
  } else {
    tile.write_partial_sums();
  }
}

// y = sum over splits + bias; one thread an output, splits in order.
template <typename T>
__global__ void add_splits_kernel(LinearParams<T> p, int splits) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t outputs = static_cast<int64_t>(p.m) * p.n;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= outputs) return;
  float sum = p.bias != nullptr ? to_float(p.bias[i % p.n]) : 0.f;
  for (int split = 0; split < splits; ++split) sum += p.partial_sums[split * outputs + i];
  p.y[i] = from_float<T>(sum);
}

template <typename T, TileShape kShape>
cudaError_t launch_shape(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream) {
  constexpr TileTraits kTraits = traits_of(kShape);
  const int chunks = (params.k + kCodesPerLoad - 1) / kCodesPerLoad;
  const int chunks_per_group = params.group_size >= params.k ? chunks : params.group_size / kCodesPerLoad;
  const bool one_group_per_stage = chunks_per_group % kTraits.chunks() == 0 || chunks_per_group == chunks;
  auto* const kernel = tile_kernel<T, kShape>;
  const dim3 grid(static_cast<unsigned>((params.m + kTraits.tokens() - 1) / kTraits.tokens()),
                  static_cast<unsigned>((params.n + kTraits.rows() - 1) / kTraits.rows()),
                  static_cast<unsigned>(config.splits));
  const cudaError_t status =
      launch_kernel(kernel, grid, kTraits.threads(), kTraits.shared_bytes(), config.overlap, stream, params,
                    GroupOfChunk(chunks_per_group), one_group_per_stage, config.k_per_split);
  if (status != cudaSuccess || config.splits == 1) return status;

  constexpr int kThreads = 256;
  const int64_t outputs = static_cast<int64_t>(params.m) * params.n;
  const auto blocks = static_cast<unsigned>((outputs + kThreads - 1) / kThreads);
  return launch_kernel(add_splits_kernel<T>, dim3(blocks), kThreads, 0, config.overlap, stream, params, config.splits);
}

}  // namespace

template <typename T>
cudaError_t launch_tile(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream) {
  switch (config.tile) {
    case TileShape::k16x64:
      return launch_shape<T, TileShape::k16x64>(params, config, stream);
    case TileShape::k16x128:
      return launch_shape<T, TileShape::k16x128>(params, config, stream);
    case TileShape::k16x192:
      return launch_shape<T, TileShape::k16x192>(params, config, stream);
    case TileShape::k32x128:
      return launch_shape<T, TileShape::k32x128>(params, config, stream);
    case TileShape::k64x128:
      return launch_shape<T, TileShape::k64x128>(params, config, stream);
    case TileShape::k64x192:
      return launch_shape<T, TileShape::k64x192>(params, config, stream);
    case TileShape::k128x128:
      return launch_shape<T, TileShape::k128x128>(params, config, stream);
    case TileShape::kCount:
      break;
  }
  return cudaErrorInvalidValue;
}

template cudaError_t launch_tile(const LinearParams<__half>&, const KernelConfig&, cudaStream_t);
template cudaError_t launch_tile(const LinearParams<__nv_bfloat16>&, const KernelConfig&, cudaStream_t);

}  // namespace awq2trt
