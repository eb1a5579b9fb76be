// y = x * W^T for many tokens with Hopper's own products (wgmma), which are about twice as fast as mma.sync.
//
// - A block computes a tile of tokens x weight rows and walks along K in stages of 64. One thread has the hardware copy
//   activations and codes of the stages to come, so that nobody computes an address.
// - The last tiles of tokens and rows are moved inward, where they overlap the ones before: both blocks write the same
//   numbers. Copies that reach beyond a matrix would be correct but take up to twice the time. With fewer tokens or
//   rows than a tile, the copies are smaller, and products see what happens to be in the rest of shared memory; it
//   stays in sums that are not written.
// - Weights are the operand in registers: a lane dequantizes its codes as in the tile kernel, and no weight in T passes
//   through any memory. Activations are the operand in shared memory, which the products read from there.
// - Two products are under way while the weights of the next are dequantized.
// - Weights are scaled in T (half an ulp of error) before the product; sums are fp32. A finished tile goes through
//   shared memory, so that complete rows of y are written.
//
// Compiled for sm_90a alone, where the build asks for compute capability 9.0; empty elsewhere, as in a kit for Orin.
#ifdef AWQ2TRT_HOPPER

#include "kernels/device/bulk_copy.cuh"
#include "kernels/device/convert.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/dequantize.h"
#include "kernels/w4a16_linear/fusion.cuh"
#include "kernels/w4a16_linear/kernel_params.cuh"
#include "kernels/w4a16_linear/warpgroup_shapes.h"

namespace awq2trt {
namespace {

constexpr int kStageK = WarpgroupTraits::kStageK;
constexpr int kStageCodeBytes = kStageK / 2;  // of a row
constexpr int kPending = 2;                   // products under way while the next is prepared; 1 was slower
constexpr int kRowsApart = 8;                 // of a lane's two rows

// The weight rows of a block's tile: in a row, or with gates half of them from the gate and half from up.
template <WarpgroupTile kTile, bool kGated>
struct TileRows {
  static constexpr int kParts = kGated ? 2 : 1;
  static constexpr int kOfPart = traits_of(kTile).rows() / kParts;

  int of_part;  // N, or N / 2
  int first;    // of a part

  // Moved inward where the tile would reach beyond the last row.
  __device__ __forceinline__ TileRows(int n, int block)
      : of_part(n / kParts), first(min(block * kOfPart, max(of_part - kOfPart, 0))) {}

  // How many rows of a part are copied.
  static __host__ __device__ int copied(int n) { return n / kParts < kOfPart ? n / kParts : kOfPart; }

  // The weight row of a row of the tile, or the part's last one if there is none.
  __device__ __forceinline__ int operator()(int row) const {
    const int part = kGated && row >= kOfPart ? 1 : 0;
    return part * of_part + min(first + row - part * kOfPart, of_part - 1);
  }
};

// A block's stages in shared memory. A slot's barrier `full` ends a phase when its copies are there, `empty` when every
// warpgroup is done with it.
template <WarpgroupTile kTile>
class Stages {
 public:
  static constexpr WarpgroupTraits kTraits = traits_of(kTile);
  static constexpr int kSlots = kTraits.stages;
  static constexpr int kAhead = kSlots - 2;  // stages that are copied ahead

  __device__ __forceinline__ explicit Stages(uint32_t shared)
      : x_(shared),
        codes_(shared + kSlots * kTraits.x_bytes()),
        full_(shared + kTraits.tile_bytes()),
        empty_(full_ + kSlots * kBarrierBytes) {}

  __device__ __forceinline__ void init() const {
    for (int slot = 0; slot < kSlots; ++slot) {
      init_barrier(full(slot), 1);
      init_barrier(empty(slot), kTraits.warpgroups);
    }
    publish_barriers();
  }

  // Starts to copy the stage at `k`, so many bytes; called by one thread.
  template <bool kGated>
  __device__ __forceinline__ void fetch(const CUtensorMap* x_map, const CUtensorMap* code_map, int k, int first_token,
                                        const TileRows<kTile, kGated>& rows, int bytes, int slot) const {
    arrive_expecting(full(slot), bytes);
    for (int part = 0; part < rows.kParts; ++part) {
      const uint32_t target = codes_ + slot * kTraits.code_bytes() + part * rows.kOfPart * kStageCodeBytes;
      copy_tile(target, code_map, k / 2, part * rows.of_part + rows.first, full(slot));
    }
    copy_tile(x(slot), x_map, k, first_token, full(slot));
  }

  __device__ __forceinline__ uint32_t x(int slot) const { return x_ + slot * kTraits.x_bytes(); }
  __device__ __forceinline__ uint32_t full(int slot) const { return full_ + slot * kBarrierBytes; }
  __device__ __forceinline__ uint32_t empty(int slot) const { return empty_ + slot * kBarrierBytes; }
  static constexpr int code_offset(int slot) { return kSlots * kTraits.x_bytes() + slot * kTraits.code_bytes(); }

 private:
  uint32_t x_, codes_, full_, empty_;
};

// Scales and zero points of a lane's two rows: those of one group are in use, those of the next are being loaded.
template <typename T>
class RowScales {
 public:
  __device__ __forceinline__ RowScales(const LinearParams<T>& params, int row0, int row1)
      : p(params), first_{int64_t{row0} * p.groups, int64_t{row1} * p.groups} {}

  __device__ __forceinline__ void load(int group) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      next_scale_[i] = __ldg(reinterpret_cast<const unsigned short*>(p.scales) + first_[i] + group);
      next_zero_[i] = p.zeros != nullptr ? __ldg(p.zeros + (first_[i] + group) / 2) : 0;
    }
    loaded_ = group;
  }

  // Uses what was loaded.
  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale_[i] = next_scale_[i] * kBothHalves;
      const uint32_t nibble = nibble_of(next_zero_[i], static_cast<uint32_t>(first_[i]) + loaded_);
      zero_[i] = OrderedZeroPoint<T>::from_nibble(nibble);
    }
  }

  // A lane's two weights of a word of codes, of one of its two rows.
  __device__ __forceinline__ uint32_t dequantize(uint32_t word, uint32_t selector, int row) const {
    return scale_pair<T>(dequantize_byte(word, selector, zero_[row]), scale_[row]);
  }

 private:
  const LinearParams<T>& p;
  const int64_t first_[2];
  uint32_t next_scale_[2], next_zero_[2], scale_[2];
  OrderedZeroPoint<T> zero_[2];
  uint32_t loaded_ = 0;
};

// Writes a block's sums, rounded, to shared memory: a row of weight rows for each token.
template <typename T, WarpgroupTile kTile>
__device__ __forceinline__ void stage_outputs(const float (&sums)[traits_of(kTile).tokens() / 2], uint32_t shared) {
  using Pair = typename std::conditional<std::is_same<T, __half>::value, __half2, __nv_bfloat162>::type;
  constexpr int kStride = traits_of(kTile).output_stride();
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
  for (int tile = 0; tile < traits_of(kTile).tokens() / kTokenTile; tile += 2) {
    uint32_t pairs[4];  // rows 0 to 7 and 8 to 15 of a tile of tokens, then of the next
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float first = sums[4 * tile + 2 * i], second = sums[4 * tile + 2 * i + 1];
      pairs[i] = bits_of(Pair(from_float<T>(first), from_float<T>(second)));
    }
    // stmatrix, transposed: lanes 0 to 7 give the addresses for the first of the four 8 x 8 matrices, and so on.
    const int token = kTokenTile * (tile + lane / 16) + lane % 8, row = kRowTile * warp + 8 * (lane / 8 % 2);
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared + token * kStride + row * 2),
                 "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                 : "memory");
  }
}

// Writes a block's outputs from shared memory to y, 8 at a time, after what follows the product.
template <typename T, WarpgroupTile kTile, Epilogue kEpilogue>
__device__ __forceinline__ void write_outputs(const LinearParams<T>& p, const FusionParams<T>& fusion,
                                              const uint8_t* shared, int first_token,
                                              const TileRows<kTile, kEpilogue == Epilogue::kGated>& rows) {
  constexpr WarpgroupTraits kTraits = traits_of(kTile);
  constexpr int kVectors = rows.kOfPart / kVectorLength;
  for (int i = threadIdx.x; i < kTraits.tokens() * kVectors; i += kTraits.threads()) {
    const int token = i / kVectors, row = i % kVectors * kVectorLength;
    if (first_token + token >= p.m || rows.first + row >= rows.of_part) continue;
    const T* const staged = reinterpret_cast<const T*>(shared + token * kTraits.output_stride()) + row;
    const int64_t output = int64_t{first_token + token} * rows.of_part + rows.first + row;
    if constexpr (kEpilogue == Epilogue::kNone) {
      *reinterpret_cast<uint4*>(p.y + output) = *reinterpret_cast<const uint4*>(staged);
    } else {
      float values[kVectorLength], others[kVectorLength] = {};
      load_vector(values, staged);
      if constexpr (kEpilogue == Epilogue::kGated) {
        load_vector(others, staged + rows.kOfPart);
      } else if (fusion.addend != nullptr) {
        load_vector(others, fusion.addend + output);
      }
#pragma unroll
      for (int k = 0; k < kVectorLength; ++k) {
        values[k] = kEpilogue == Epilogue::kGated ? activated(fusion.activation, values[k]) * others[k]
                                                  : finished(fusion, values[k], others[k]);
      }
      store_vector(p.y + output, values);
    }
  }
}

// kPlain: a stage lies within one group; else groups are multiples of half a stage.
template <typename T, WarpgroupTile kTile, bool kPlain, Epilogue kEpilogue>
__global__ void __launch_bounds__(traits_of(kTile).threads(), 1)
    warpgroup_kernel(const LinearParams<T> p, const FusionParams<T> fusion, const GroupOfChunk group_of_chunk,
                     const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap code_map) {
  constexpr WarpgroupTraits kTraits = traits_of(kTile);
  using Ring = Stages<kTile>;
  extern __shared__ uint8_t unaligned[];
  const uint32_t unaligned_address = shared_address(unaligned);
  const uint32_t address = (unaligned_address + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes;
  uint8_t* const shared = unaligned + (address - unaligned_address);
  const Ring ring(address);
  const int first_token = min(static_cast<int>(blockIdx.x) * kTraits.tokens(), max(p.m - kTraits.tokens(), 0));
  const TileRows<kTile, kEpilogue == Epilogue::kGated> rows(p.n, blockIdx.y);
  const int stage_bytes = min(kTraits.tokens(), p.m) * kStageK * 2 + rows.kParts * rows.copied(p.n) * kStageCodeBytes;
  const int stages = (p.k + kStageK - 1) / kStageK, last_chunk = p.k / kCodesPerLoad - 1;
  const bool copies = threadIdx.x == 0;
  if (copies) ring.init();
  __syncthreads();

  let_next_kernel_start();
  wait_for_previous_kernel();
  const auto fetch = [&](int stage, int slot) {
    ring.fetch(&x_map, &code_map, stage * kStageK, first_token, rows, stage_bytes, slot);
  };
  if (copies) {
    for (int stage = 0; stage < min(Ring::kAhead, stages); ++stage) fetch(stage, stage);
  }

  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int lane_row = warp * kRowTile + lane / 4;  // and the row 8 below it
  const uint32_t selector = byte_selector(lane % 4);
  const int row0 = rows(lane_row), row1 = rows(lane_row + kRowsApart);
  RowScales<T> scales(p, row0, row1);
  scales.load(0);
  float sums[kTraits.tokens() / 2];
  const int group_stages = p.group_size >= p.k ? stages : p.group_size / kStageK;
  int group = 0, group_left = 0;  // for kPlain: the group that is being loaded, and stages of the one in use
  for (int stage = 0, slot = 0, phase = 0, before = 0, ahead = Ring::kAhead, rounds = 0; stage < stages; ++stage) {
    if (copies && stage + Ring::kAhead < stages) {
      if (rounds > 0) wait_for_phase(ring.empty(ahead), (rounds - 1) & 1);
      fetch(stage + Ring::kAhead, ahead);
    }
    if (++ahead == Ring::kSlots) {
      ahead = 0;
      ++rounds;
    }
    if (kPlain && group_left == 0) {
      scales.advance();
      group = min(group + 1, p.groups - 1);
      scales.load(group);
      group_left = group_stages;
    }
    --group_left;
    wait_for_phase(ring.full(slot), phase);
    const auto* const codes =
        reinterpret_cast<const uint4*>(shared + Ring::code_offset(slot) + lane_row * kStageCodeBytes);
    const uint4 lane_codes[2][2] = {{codes[0], codes[1]}, {codes[2 * kRowsApart], codes[2 * kRowsApart + 1]}};
    const auto* const words0 = reinterpret_cast<const uint32_t*>(lane_codes[0]);
    const auto* const words1 = reinterpret_cast<const uint32_t*>(lane_codes[1]);
    const uint64_t tokens = tokens_operand(ring.x(slot));
#pragma unroll
    for (int step = 0; step < kStageK / kProductK; ++step) {
      if (!kPlain && step % 2 == 0) {
        scales.advance();
        scales.load(group_of_chunk(min(2 * stage + step / 2 + 1, last_chunk)));
      }
      const uint32_t weights[4] = {
          scales.dequantize(words0[2 * step], selector, 0), scales.dequantize(words1[2 * step], selector, 1),
          scales.dequantize(words0[2 * step + 1], selector, 0), scales.dequantize(words1[2 * step + 1], selector, 1)};
      begin_products();
      start_product<T>(sums, weights, tokens + 2 * step, stage | step);
      commit_products();
      wait_for_products<kPending>();
      // Now only products of this stage are under way.
      if (step == kPending - 1 && stage > 0 && threadIdx.x % kWarpgroupSize == 0) arrive(ring.empty(before));
    }
    before = slot;
    if (++slot == Ring::kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
  wait_for_products<0>();
  settle(sums);

  if (p.bias != nullptr) {
    const float bias0 = to_float(p.bias[row0]), bias1 = to_float(p.bias[row1]);
#pragma unroll
    for (int i = 0; i < kTraits.tokens() / 2; ++i) sums[i] += i % 4 < 2 ? bias0 : bias1;
  }
  __syncthreads();  // every warpgroup is done with the stages
  stage_outputs<T, kTile>(sums, address);
  __syncthreads();
  write_outputs<T, kTile, kEpilogue>(p, fusion, shared, first_token, rows);
}

template <typename T, WarpgroupTile kTile, Epilogue kEpilogue>
cudaError_t launch_shape(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                         cudaStream_t stream) {
  constexpr WarpgroupTraits kTraits = traits_of(kTile);
  const int code_rows = TileRows<kTile, kEpilogue == Epilogue::kGated>::copied(params.n);
  const int tokens = params.m < kTraits.tokens() ? params.m : kTraits.tokens();
  CUtensorMap x_map, code_map;
  cudaError_t status = make_tensor_map({params.x, 2, params.m, params.k, tokens, kStageK, true}, &x_map);
  if (status != cudaSuccess) return status;
  status = make_tensor_map({params.codes, 1, params.n, params.k / 2, code_rows, kStageCodeBytes, false}, &code_map);
  if (status != cudaSuccess) return status;
  const bool plain = params.group_size % kStageK == 0 || params.group_size >= params.k;
  auto* const kernel =
      plain ? warpgroup_kernel<T, kTile, true, kEpilogue> : warpgroup_kernel<T, kTile, false, kEpilogue>;
  const dim3 grid(static_cast<unsigned>((params.m + kTraits.tokens() - 1) / kTraits.tokens()),
                  static_cast<unsigned>((params.n + kTraits.rows() - 1) / kTraits.rows()));
  return launch_kernel(kernel, grid, kTraits.threads(), kTraits.shared_bytes(), config.overlap, stream, params, fusion,
                       GroupOfChunk(chunks_per_group(params.k, params.group_size)), x_map, code_map);
}

template <typename T, Epilogue kEpilogue>
cudaError_t launch_with(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                        cudaStream_t stream) {
  switch (config.warpgroup_tile) {
    case WarpgroupTile::k128x128:
      return launch_shape<T, WarpgroupTile::k128x128, kEpilogue>(params, fusion, config, stream);
    case WarpgroupTile::k128x192:
      return launch_shape<T, WarpgroupTile::k128x192, kEpilogue>(params, fusion, config, stream);
    case WarpgroupTile::k256x64:
      return launch_shape<T, WarpgroupTile::k256x64, kEpilogue>(params, fusion, config, stream);
    case WarpgroupTile::k256x128:
      return launch_shape<T, WarpgroupTile::k256x128, kEpilogue>(params, fusion, config, stream);
    case WarpgroupTile::kCount:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

template <typename T>
cudaError_t launch_warpgroup(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream) {
  return launch_with<T, Epilogue::kNone>(params, FusionParams<T>{}, config, stream);
}

template <typename T>
cudaError_t launch_warpgroup(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                             cudaStream_t stream) {
  return fusion.epilogue == Epilogue::kGated ? launch_with<T, Epilogue::kGated>(params, fusion, config, stream)
                                             : launch_with<T, Epilogue::kElementwise>(params, fusion, config, stream);
}

#define AWQ2TRT_INSTANTIATE(T)                                                                               \
  template cudaError_t launch_warpgroup(const LinearParams<T>&, const KernelConfig&, cudaStream_t);          \
  template cudaError_t launch_warpgroup(const LinearParams<T>&, const FusionParams<T>&, const KernelConfig&, \
                                        cudaStream_t);
AWQ2TRT_INSTANTIATE(__half)
AWQ2TRT_INSTANTIATE(__nv_bfloat16)
#undef AWQ2TRT_INSTANTIATE

}  // namespace awq2trt

#endif  // AWQ2TRT_HOPPER
