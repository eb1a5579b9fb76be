// y = x * W^T for more than a few tokens, on the tensor cores.
//
// - A block computes a tile of tokens x weight rows and walks along K in stages. cp.async keeps stages - 2 of them in
//   flight, activations and codes alike in the order they have in memory.
// - Codes become mma operands in registers: from every word of 8 codes a lane takes the byte that holds its two codes,
//   and ldmatrix gives it the matching activations. Nothing has to be repacked or swapped.
// - A warp dequantizes one mma step ahead of its products, so that each kind of instruction fills the gaps between the
//   others.
// - Scales and zero points are fetched three stages ahead by one thread each and wait in shared memory in the form the
//   multiplication wants. Weights are scaled in T (half an ulp of error) before the product; sums are fp32.
// - A finished tile goes through shared memory: there the warps that split k add up their sums in a fixed order, and
//   from there complete rows of y are written. Where the tiles alone cannot fill the device, blocks split K as well,
//   leave fp32 sums in the workspace, and a second kernel adds them in order.
#include "kernels/device/async_copy.cuh"
#include "kernels/device/convert.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/kernel_params.cuh"
#include "kernels/w4a16_linear/tile.cuh"
#include "kernels/w4a16_linear/tile_shapes.h"

namespace awq2trt {
namespace {

template <typename T, TileShape kShape, bool kPlain>
__global__ void __launch_bounds__(traits_of(kShape).threads(), traits_of(kShape).blocks)
    tile_kernel(LinearParams<T> params, GroupOfChunk group_of_chunk, int k_per_split) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if (traits_of(kShape).min_sm > 80) return;  // choose_config() never asks for it; this generates no code
#endif
  extern __shared__ __align__(128) uint8_t shared[];  // x_lane_ counts on the zeros below
  Tile<T, kShape, kPlain> tile(params, group_of_chunk, shared, k_per_split);
  constexpr int kStages = traits_of(kShape).stages;
  const int stages = tile.stage_count();

  let_next_kernel_start();
  wait_for_previous_kernel();
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) tile.fetch(stage);
#pragma unroll
  for (int stage = 0; stage < 2; ++stage) {
    tile.fetch_scales();
    tile.store_scales(stage);
  }
  tile.fetch_scales();
  wait_for_copies<kStages - 2>();
  __syncthreads();
  tile.begin();
  for (int stage = 0, slot = 0; stage < stages; ++stage) {
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
  const int group_chunks = chunks_per_group(params.k, params.group_size);
  const bool one_group_per_stage = group_chunks % kTraits.chunks() == 0 || params.group_size >= params.k;
  const bool plain = params.codes_aligned && params.k % kTraits.block_k == 0 && one_group_per_stage;
  auto* const kernel = plain ? tile_kernel<T, kShape, true> : tile_kernel<T, kShape, false>;
  const dim3 grid(static_cast<unsigned>((params.m + kTraits.tokens() - 1) / kTraits.tokens()),
                  static_cast<unsigned>((params.n + kTraits.rows() - 1) / kTraits.rows()),
                  static_cast<unsigned>(config.splits));
  const cudaError_t status = launch_kernel(kernel, grid, kTraits.threads(), kTraits.shared_bytes(), config.overlap,
                                           stream, params, GroupOfChunk(group_chunks), config.k_per_split);
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
    case TileShape::k64x64:
      return launch_shape<T, TileShape::k64x64>(params, config, stream);
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
