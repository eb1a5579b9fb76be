// y = x * W^T for 1 to 8 tokens, where reading W takes all the time.
//
// - A block owns a few dozen weight rows, as many as give every multiprocessor two blocks, and walks down them in tiles
//   of 16. A unit of work is 16 rows x 128 k, 1 KiB of codes. Warps take the units of a tile in turn, two neighbours at
//   a time (whole 128-byte lines), so that a block reads one contiguous piece of memory at any moment: DRAM pages are
//   opened once. The turns continue from tile to tile: no warp waits for another before the end.
// - A lane loads 16 bytes, 32 codes of one row; four lanes together cover 128 k, with group size 128 exactly one group.
//   kDepth units are in flight before the first is used: 2 x 8 warps x kDepth KiB per multiprocessor, where latency
//   times bandwidth asks for about 20 KiB (3.35 TB/s x 0.8 us / 132).
// - The codes go to mma.sync in the order of memory. 8 tokens cost as much as 1; sums are fp32, code - zero is exact,
//   and a scale is applied to sums of 128 products instead of to each weight.
// - Partial sums of a tile are collected in shared memory, one slot per warp, and added in warp order.
// - Fused (fusion.cuh), the norm of a single token comes first, and every block computes it for itself; activations and
//   addends come last. With a gate, a tile is 8 rows of the gate and the 8 rows of up that are multiplied with them.
#include "kernels/device/convert.cuh"
#include "kernels/device/global_loads.cuh"
#include "kernels/device/half_pair.h"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/dequantize.h"
#include "kernels/w4a16_linear/fusion.cuh"
#include "kernels/w4a16_linear/kernel_params.cuh"

#include <type_traits>

namespace awq2trt {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kDepth = 4;                            // units in flight per warp
constexpr int kStep = DecodeShared::kStep;           // k of a unit
constexpr int kLanesPerRow = kStep / kCodesPerLoad;  // 4
constexpr int kWords = kCodesPerLoad / kCodesPerWord;

constexpr int kXBatch = 4;  // 16-byte pieces of x that a thread loads at once: two tokens of K = 4096

// A unit of the block (a tile of rows and a step along k), with what its loads fetch for the lane's two rows: codes,
// scales, and the bytes that hold the zero points.
struct Unit {
  int tile, step;
  uint32_t words[2][kWords];
  uint32_t scale[2];
  uint32_t zero_byte[2];
};

// How far a warp advances: in tiles, and in steps within a tile.
struct Stride {
  int tiles, steps;
};

// kVectorLoads: rows of codes are aligned to 16 bytes. kScaleSums: a unit's 128 k lie in one group, so the scale is
// applied to the sum; otherwise each weight is scaled before the product, in T. kNormed, kEpilogue: what is fused.
template <typename T, bool kVectorLoads, bool kScaleSums, bool kNormed, Epilogue kEpilogue>
__global__ void __launch_bounds__(kMaxThreads, kBlocksPerMultiprocessor)
    decode_kernel(LinearParams<T> p, GroupOfChunk group_of_chunk, int rows_per_block, int token_stride,
                  FusionParams<T> fusion) {
  extern __shared__ uint4 shared[];
  T* const x_shared = reinterpret_cast<T*>(shared);                             // [M, token_stride], paired
  float* const sums = reinterpret_cast<float*>(x_shared + p.m * token_stride);  // [tiles, warps, M, 16]

  const int warps = blockDim.x / kWarpSize, warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int lane_row = lane / kLanesPerRow, lane_chunk = lane % kLanesPerRow;  // g and t of tensor_core.cuh
  const int steps = (p.k + kStep - 1) / kStep;
  constexpr bool kGated = kEpilogue == Epilogue::kGated;
  constexpr int kTileOutputs = kGated ? kRowTile / 2 : kRowTile;
  const int width = kGated ? p.n / 2 : p.n;  // of y
  const int outputs_per_block = kGated ? rows_per_block / 2 : rows_per_block;
  const int first_row = blockIdx.x * outputs_per_block;
  const int rows = min(outputs_per_block, width - first_row);  // of the gate, if there is one
  const int tiles = (rows + kTileOutputs - 1) / kTileOutputs;

  // Offsets of the block's rows; within them 32 bits suffice. first_row is even, so its zero points start at a whole
  // byte.
  const uint32_t row_bytes = p.k / 2;
  const uint8_t* const codes = p.codes + static_cast<int64_t>(first_row) * row_bytes;
  const uint8_t* const scales = reinterpret_cast<const uint8_t*>(p.scales + static_cast<int64_t>(first_row) * p.groups);
  const uint8_t* const zeros = p.zeros + static_cast<int64_t>(first_row) * p.groups / 2;

  const auto group_of = [&](int step) {
    if (kScaleSums) return group_of_chunk(step * kLanesPerRow);
    return min(group_of_chunk(step * kLanesPerRow + lane_chunk), p.groups - 1);
  };

  // Past the end of the block's rows or of k, a lane reads the last ones again: nobody writes the results of such rows,
  // and such codes are multiplied by activations of 0.
  const auto load = [&](Unit& unit) {
    const uint32_t k_byte =
        min(unit.step * (kStep / 2) + lane_chunk * (kCodesPerLoad / 2), row_bytes - kCodesPerLoad / 2);
    const int group = group_of(unit.step);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t row = kGated ? min(unit.tile * kTileOutputs + lane_row, rows - 1) + half * width
                                  : min(unit.tile * kRowTile + lane_row + 8 * half, rows - 1);
      if (kVectorLoads) {
        const uint4 words = load_once(codes + (row * row_bytes + k_byte));
        unit.words[half][0] = words.x, unit.words[half][1] = words.y;
        unit.words[half][2] = words.z, unit.words[half][3] = words.w;
      } else {
#pragma unroll
        for (int j = 0; j < kWords; ++j) {
          const uint32_t word_byte = unit.step * (kStep / 2) + lane_chunk * (kCodesPerLoad / 2) + 4 * j;
          unit.words[half][j] = load_word(codes + (row * row_bytes + min(word_byte, row_bytes - 4)));
        }
      }
      const uint32_t index = row * p.groups + group;
      unit.scale[half] = load_scale(scales + 2 * index);
      if (p.zeros != nullptr) unit.zero_byte[half] = __ldg(zeros + index / 2);
    }
  };

  // c[parity] collects every other mma, so that consecutive ones do not wait for each other.
  float c[2][4] = {};
  float sum[4] = {};

  const T* const x_lane = x_shared + min(lane_row, p.m - 1) * token_stride + lane_chunk * 8;
  const uint32_t row_parity = lane_row * p.groups;  // of its scales' indices; 8 or 16 rows on it is the same

  const auto multiply = [&](const Unit& unit) {
    ZeroPoint<T> zero[2] = {ZeroPoint<T>::from_nibble(0), ZeroPoint<T>::from_nibble(0)};
    if (p.zeros != nullptr) {
      const uint32_t parity = row_parity + group_of(unit.step);
      zero[0] = ZeroPoint<T>::from_nibble(nibble_of(unit.zero_byte[0], parity));
      zero[1] = ZeroPoint<T>::from_nibble(nibble_of(unit.zero_byte[1], parity));
    }
    const T* const x_step = x_lane + unit.step * kStep;
#pragma unroll
    for (int j = 0; j < kWords; ++j) {
      const uint4 x = *reinterpret_cast<const uint4*>(x_step + j * kCodesPerLoad);
      CodePairs top = dequantize_word(unit.words[0][j], zero[0]);
      CodePairs bottom = dequantize_word(unit.words[1][j], zero[1]);
      if (!kScaleSums) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          top.pair[i] = scale_pair<T>(top.pair[i], unit.scale[0] * kBothHalves);
          bottom.pair[i] = scale_pair<T>(bottom.pair[i], unit.scale[1] * kBothHalves);
        }
      }
      mma_16x8x16(c[0], {top.pair[0], bottom.pair[0], top.pair[1], bottom.pair[1]}, x.x, x.y, T{});
      mma_16x8x16(c[1], {top.pair[2], bottom.pair[2], top.pair[3], bottom.pair[3]}, x.z, x.w, T{});
    }
    if (kScaleSums) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i] += float_of_bits<T>(unit.scale[i / 2]) * (c[0][i] + c[1][i]);
        c[0][i] = c[1][i] = 0.f;
      }
    }
  };

  const auto store_sums = [&](int tile) {
    float* const slot = sums + (tile * warps + warp) * p.m * kRowTile;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * lane_chunk + i % 2, row = lane_row + 8 * (i / 2);
      if (token < p.m) slot[token * kRowTile + row] = kScaleSums ? sum[i] : c[0][i] + c[1][i];
      sum[i] = c[0][i] = c[1][i] = 0.f;
    }
  };

  // A warp's units: 2 neighbours, then the one 2 * warps - 1 further on. Divides only where K is short: a division
  // takes longer than a load.
  const auto stride_of = [&](int units) {
    return units < steps ? Stride{0, units} : Stride{units / steps, units % steps};
  };
  const Stride to_neighbour = stride_of(1), to_next_pair = stride_of(2 * warps - 1), to_first = stride_of(2 * warp);
  int tile = to_first.tiles, step = to_first.steps;  // of the unit to load next
  const auto advance = [&](Stride stride) {
    tile += stride.tiles;
    step += stride.steps;
    if (step >= steps) {
      step -= steps;
      ++tile;
    }
  };
  Unit units[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d) {
    units[d].tile = tile, units[d].step = step;
    advance(d % 2 == 0 ? to_neighbour : to_next_pair);
  }

  const auto load_first_units = [&] {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (units[d].tile < tiles) load(units[d]);
    }
  };

  const int vectors = steps * kStep / 8;  // of 8 activations, in a row
  NormedToken<T> normed_token(p, fusion, x_shared, vectors);

  let_next_kernel_start();
  if constexpr (kNormed) normed_token.load_constants();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  load_first_units();  // weights are constants, see LinearTensors; while the previous kernel ends, the memory is idle
#endif
  wait_for_previous_kernel();

  // Copies activations to shared memory. There they are in pairs as dequantize_word() makes them and, within a step,
  // word j of all four lanes of a row together: a row's lanes read 64 consecutive bytes, and the padding puts the next
  // token's 64 bytes into the other half of the banks. Zeros from K to the end of the last step.
  const auto load_x = [&](int token, int vector) {
    uint4 x = {};
    if (token < p.m && vector * 8 < p.k) x = load_now(p.x + static_cast<int64_t>(token) * p.k + vector * 8);
    return x;
  };
  const auto place_of_x = [&](int token, int vector) { return place_of_vector(vector, token * token_stride); };
  int token = 0, vector = threadIdx.x;  // of this thread; it advances by one vector per thread of the block
  const auto settle = [&] {
    while (vector >= vectors) {
      vector -= vectors;
      ++token;
    }
  };
  if constexpr (kNormed) {
    normed_token.fetch([&] {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
      load_first_units();
#endif
    });
  } else {
    for (bool first = true; settle(), token < p.m || first; first = false) {
      uint4 x[kXBatch];
      int place[kXBatch];
#pragma unroll
      for (int r = 0; r < kXBatch; ++r) {
        settle();
        place[r] = token < p.m ? place_of_x(token, vector) : -1;
        x[r] = load_x(token, vector);
        vector += blockDim.x;
      }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
      if (first) load_first_units();  // after the activations, which would wait behind all those weights
#endif
#pragma unroll
      for (int r = 0; r < kXBatch; ++r) {
        if (place[r] >= 0) *reinterpret_cast<uint4*>(x_shared + place[r]) = pair_activations(x[r]);
      }
    }
  }
  // The addend of the thread's first output arrives during the products; there rarely is a second one.
  const auto place_of_output = [&](int token, int row) {
    return static_cast<int64_t>(token) * width + first_row + row;
  };
  float first_addend = 0.f;
  if constexpr (kEpilogue == Epilogue::kElementwise) {
    const int i = threadIdx.x;
    if (i < p.m * rows) first_addend = load_addend(fusion, place_of_output(i / rows, i % rows));
  }

  // A tile of a short K has fewer units than there are warps; the slots of the other warps count as 0.
  for (int i = threadIdx.x; i < tiles * warps * p.m * kRowTile; i += blockDim.x) sums[i] = 0.f;

  __syncthreads();

  static_assert(kDepth % 2 == 0, "a unit's place in a pair is its place in the ring");
  while (units[0].tile < tiles) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (units[d].tile >= tiles) break;
      multiply(units[d]);
      if (units[d].tile != units[(d + 1) % kDepth].tile) store_sums(units[d].tile);
      units[d].tile = tile, units[d].step = step;
      if (tile < tiles) load(units[d]);
      advance(d % 2 == 0 ? to_neighbour : to_next_pair);
    }
  }
  __syncthreads();

  // Sums of a tile's warps, always in the same order. That of gated rows begins with the warp that the first one of the
  // kernel without a gate stands for, where the same rows are in other tiles: with an even number of steps, a warp's
  // pairs of units are then those of one warp there, and so the sums have the same bits.
  for (int i = threadIdx.x; i < p.m * rows; i += blockDim.x) {
    const int token = i / rows, row = i % rows;
    const auto sum_of = [&](int half) {  // of a gated tile: 0 is the gate, 1 is up
      const float* slot = sums + (row / kTileOutputs * warps * p.m + token) * kRowTile + row % kTileOutputs + 8 * half;
      float total = p.bias != nullptr ? to_float(p.bias[first_row + row + half * width]) : 0.f;
      const int tile_apart = (first_row + row + half * width) % rows_per_block / kRowTile;
      const unsigned first_warp = (row / kTileOutputs - tile_apart) * steps / 2;
      for (int w = 0; w < warps; ++w) total += slot[(kGated ? (first_warp + w) % warps : w) * p.m * kRowTile];
      return total;
    };
    float y = sum_of(0);
    if constexpr (kGated) {
      const T gate = from_float<T>(y), up = from_float<T>(sum_of(1));
      y = activated(fusion.activation, to_float(gate)) * to_float(up);
    } else if constexpr (kEpilogue == Epilogue::kElementwise) {
      const bool is_first = i == static_cast<int>(threadIdx.x);
      y = finished(fusion, y, is_first ? first_addend : load_addend(fusion, place_of_output(token, row)));
    }
    p.y[place_of_output(token, row)] = from_float<T>(y);
  }
}

template <typename T>
cudaError_t launch(void (*kernel)(LinearParams<T>, GroupOfChunk, int, int, FusionParams<T>),
                   const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                   cudaStream_t stream) {
  const DecodeShared shared(params.m, params.k, config.rows_per_block, config.warps);
  const int blocks = (params.n + config.rows_per_block - 1) / config.rows_per_block;
  return launch_kernel(kernel, dim3(blocks), config.warps * kWarpSize, shared.bytes, config.overlap, stream, params,
                       GroupOfChunk(chunks_per_group(params.k, params.group_size)), config.rows_per_block,
                       shared.token_stride, fusion);
}

}  // namespace

template <typename T>
cudaError_t launch_decode(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream) {
  constexpr Epilogue kNone = Epilogue::kNone;
  const bool scale_sums =
      chunks_per_group(params.k, params.group_size) % kLanesPerRow == 0 || params.group_size >= params.k;
  auto* const kernel =
      params.codes_aligned
          ? (scale_sums ? decode_kernel<T, true, true, false, kNone> : decode_kernel<T, true, false, false, kNone>)
          : (scale_sums ? decode_kernel<T, false, true, false, kNone> : decode_kernel<T, false, false, false, kNone>);
  return launch(kernel, params, FusionParams<T>{}, config, stream);
}

template <typename T>
cudaError_t launch_decode(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                          cudaStream_t stream) {
  if (fusion.has_norm && config.warps * kWarpSize != NormedToken<T>::kThreads) return cudaErrorInvalidValue;
  switch (fusion.epilogue) {
    case Epilogue::kNone:
      if (!fusion.has_norm) break;
      return launch(decode_kernel<T, true, true, true, Epilogue::kNone>, params, fusion, config, stream);
    case Epilogue::kElementwise:
      return launch(fusion.has_norm ? decode_kernel<T, true, true, true, Epilogue::kElementwise>
                                    : decode_kernel<T, true, true, false, Epilogue::kElementwise>,
                    params, fusion, config, stream);
    case Epilogue::kGated:
      return launch(fusion.has_norm ? decode_kernel<T, true, true, true, Epilogue::kGated>
                                    : decode_kernel<T, true, true, false, Epilogue::kGated>,
                    params, fusion, config, stream);
  }
  return cudaErrorInvalidValue;
}

template cudaError_t launch_decode(const LinearParams<__half>&, const KernelConfig&, cudaStream_t);
template cudaError_t launch_decode(const LinearParams<__nv_bfloat16>&, const KernelConfig&, cudaStream_t);
template cudaError_t launch_decode(const LinearParams<__half>&, const FusionParams<__half>&, const KernelConfig&,
                                   cudaStream_t);
template cudaError_t launch_decode(const LinearParams<__nv_bfloat16>&, const FusionParams<__nv_bfloat16>&,
                                   const KernelConfig&, cudaStream_t);

}  // namespace awq2trt
