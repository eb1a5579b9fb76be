// y = x * W^T for 1 to 8 tokens and layers so small that all of their weights are under way at once.
//
// Not the memory sets the time there, but the steps that must follow each other in every launch: wait for the previous
// kernel, fetch x, multiply, add up, store. So everything else is done before that wait, while the previous kernel is
// still running:
// - A block owns 16 weight rows, and copies all of their codes into shared memory at once (cp.async): that takes no
//   registers, so that blocks of the next launch find room beside those of this one.
// - Scales and zero points are put into the form that the products need, once for each row and step, not for each lane.
//   Little remains after the wait: mostly the integer instructions around the multiplications.
//
// The products are those of decode_kernel.cu. A unit is 16 rows x 128 k within one group; a warp takes every eighth.
// Sums of the warps are added in warp order. With a gate (fusion.cuh), a block owns 8 rows of the gate and 8 of up.
#include "kernels/device/async_copy.cuh"
#include "kernels/device/convert.cuh"
#include "kernels/device/global_loads.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_core.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/dequantize.h"
#include "kernels/w4a16_linear/fusion.cuh"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

constexpr int kWarps = DecodeOnceShared::kWarps;
constexpr int kThreads = kWarps * kWarpSize;
// Blocks per multiprocessor that the compiler leaves registers for. Not more: with four, the blocks of a launch share
// multiprocessors unevenly with those of three other launches, and a launch is as slow as its fullest multiprocessor.
constexpr int kBlocks = DecodeOnceShared::kMaxBlocks;
constexpr int kStep = DecodeOnceShared::kStep;       // k of a unit
constexpr int kLanesPerRow = kStep / kCodesPerLoad;  // 4
constexpr int kWords = kCodesPerLoad / kCodesPerWord;
constexpr int kXBatch = 2;  // 16-byte pieces of a token's x that a thread loads at once, of two tokens

// What a row's products with one step need.
template <typename T>
struct alignas(16) RowScale {
  float scale;
  ZeroPoint<T> zero;
};

__device__ __forceinline__ void store_shared(uint32_t target, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(target), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// One block's 16 rows. The methods are the steps, in this order.
template <typename T, Epilogue kEpilogue>
class Rows {
 public:
  __device__ __forceinline__ Rows(const LinearParams<T>& params, int token_stride, int units, uint4* shared)
      : p(params),
        token_stride_(token_stride),
        units_(units),
        steps_((params.k + kStep - 1) / kStep),
        first_row_(blockIdx.x * kOutputs),
        rows_(min(kOutputs, width() - first_row_)),
        warp_(threadIdx.x / kWarpSize),
        lane_row_(threadIdx.x % kWarpSize / kLanesPerRow),
        lane_chunk_(threadIdx.x % kLanesPerRow),
        x_(reinterpret_cast<T*>(shared)),
        codes_(reinterpret_cast<uint4*>(x_ + params.m * token_stride)),
        scales_(reinterpret_cast<RowScale<T>*>(codes_ + kWarps * units * 2 * kWarpSize)),
        sums_(reinterpret_cast<float*>(scales_ + steps_ * kRowTile)) {}

  // Starts copying all codes. Past the end of the rows or of k, a lane reads the last ones again: nobody writes the
  // results of such rows, and such codes are multiplied by activations of 0. Only the lane itself reads what it copies.
  __device__ __forceinline__ void copy_codes() const {
    const uint32_t row_bytes = p.k / 2;
    const uint8_t* const codes = p.codes + static_cast<int64_t>(first_row_) * row_bytes;
    const uint8_t* const top = codes + min(lane_row_, rows_ - 1) * row_bytes;
    const uint8_t* const bottom = codes + row_from_first(lane_row_ + 8) * row_bytes;
    uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(lane_codes()));
    for (int step = warp_; step < steps_; step += kWarps) {
      const uint32_t k_byte =
          min(step * (kStep / 2) + lane_chunk_ * (kCodesPerLoad / 2), row_bytes - kCodesPerLoad / 2);
      copy_16_async(target, top + k_byte);
      copy_16_async(target + kWarpSize * 16, bottom + k_byte);
      target += 2 * kWarpSize * 16;
    }
    commit_copies();
  }

  // Prepares the scales and zero points of every row and step, 16 steps at a time, with two loads of each under way.
  __device__ __forceinline__ void prepare_scales(GroupOfChunk group_of_chunk) const {
    // first_row_ is even, so its zero points start at a whole byte.
    const int64_t first = static_cast<int64_t>(first_row_) * p.groups;
    const uint8_t* const scales = reinterpret_cast<const uint8_t*>(p.scales + first);
    const uint8_t* const zeros = p.zeros + first / 2;
    const uint32_t row = row_from_first(static_cast<int>(threadIdx.x) % kRowTile);
    constexpr int kRound = kThreads / kRowTile;  // steps that the threads prepare at once
    for (int first_step = threadIdx.x / kRowTile; first_step < steps_; first_step += 2 * kRound) {
      uint32_t scale[2] = {}, zero[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int step = first_step + i * kRound;
        if (step >= steps_) continue;
        const uint32_t index = row * p.groups + group_of_chunk(step * kLanesPerRow);
        scale[i] = load_scale(scales + 2 * index);
        if (p.zeros != nullptr) zero[i] = nibble_of(__ldg(zeros + index / 2), index);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int step = first_step + i * kRound;
        if (step >= steps_) continue;
        scales_[step * kRowTile + threadIdx.x % kRowTile] = {float_of_bits<T>(scale[i]),
                                                             ZeroPoint<T>::from_nibble(zero[i])};
      }
    }
  }

  // Copies activations to shared memory, in the order that decode_kernel.cu explains. Zeros from K to the end of the
  // last step.
  __device__ __forceinline__ void fetch_activations() const {
    constexpr int kVectors = kStep / 8;  // of 8 activations, in a step
    static_assert(kThreads % kVectors == 0, "a thread's place within a step is the same in all of them");
    constexpr uint32_t kRound = 2 * kThreads / kVectors * kStep;  // bytes from a thread's vector to its next
    const int chunk = threadIdx.x / kWords % kLanesPerRow, word = threadIdx.x % kWords;
    const int place = threadIdx.x / kVectors * kStep + word * kCodesPerLoad + chunk * 8;
    const uint32_t token_bytes = 2 * token_stride_;
    const int row_vectors = p.k / 8;
    const uint4* source = reinterpret_cast<const uint4*>(p.x) + threadIdx.x;
    uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(x_)) + 2 * place;
    for (int vector = threadIdx.x; vector < steps_ * kVectors; vector += kXBatch * kThreads) {
      for (int token = 0; token < p.m; token += 2) {
        uint4 x[2][kXBatch] = {};
#pragma unroll
        for (int i = 0; i < 2 * kXBatch; ++i) {
          const int t = i / kXBatch, r = i % kXBatch;
          if (token + t < p.m && vector + r * kThreads < row_vectors)
            x[t][r] = load_now(source + (token + t) * row_vectors + r * kThreads);
        }
#pragma unroll
        for (int i = 0; i < 2 * kXBatch; ++i) {
          const int t = i / kXBatch, r = i % kXBatch;
          if (token + t < p.m && vector + r * kThreads < steps_ * kVectors)
            store_shared(target + (token + t) * token_bytes + r * kRound, pair_activations(x[t][r]));
        }
      }
      source += kXBatch * kThreads;
      target += kXBatch * kRound;
    }
  }

  // The norm of the single token, stored in the same places.
  __device__ __forceinline__ NormedToken<T> normed_token(const FusionParams<T>& fusion) const {
    static_assert(kThreads == NormedToken<T>::kThreads, "of a block");
    return NormedToken<T>(p, fusion, x_, steps_ * kStep / kVectorLength);
  }

  // Computes the warp's units and writes its sums to shared memory.
  __device__ __forceinline__ void multiply() const {
    const T* x = x_ + min(lane_row_, p.m - 1) * token_stride_ + lane_chunk_ * 8 + warp_ * kStep;
    const uint4* codes = lane_codes();
    const RowScale<T>* scales = scales_ + warp_ * kRowTile + lane_row_;
    float sum[4] = {};
#pragma unroll 2
    for (int step = warp_; step < steps_; step += kWarps) {
      const uint4 top_codes = codes[0], bottom_codes = codes[kWarpSize];
      const RowScale<T> top_scale = scales[0], bottom_scale = scales[8];
      const uint32_t top_words[kWords] = {top_codes.x, top_codes.y, top_codes.z, top_codes.w};
      const uint32_t bottom_words[kWords] = {bottom_codes.x, bottom_codes.y, bottom_codes.z, bottom_codes.w};
      float c[2][4] = {};  // every other mma's, so that consecutive ones do not wait for each other
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        const uint4 b = *reinterpret_cast<const uint4*>(x + j * kCodesPerLoad);
        const CodePairs top = dequantize_word(top_words[j], top_scale.zero);
        const CodePairs bottom = dequantize_word(bottom_words[j], bottom_scale.zero);
        mma_16x8x16(c[0], {top.pair[0], bottom.pair[0], top.pair[1], bottom.pair[1]}, b.x, b.y, T{});
        mma_16x8x16(c[1], {top.pair[2], bottom.pair[2], top.pair[3], bottom.pair[3]}, b.z, b.w, T{});
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += (i < 2 ? top_scale.scale : bottom_scale.scale) * (c[0][i] + c[1][i]);
      codes += 2 * kWarpSize;
      scales += kWarps * kRowTile;
      x += kWarps * kStep;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = 2 * lane_chunk_ + i % 2, row = lane_row_ + 8 * (i / 2);
      if (token < p.m) sums_[(token * kWarps + warp_) * kRowTile + row] = sum[i];
    }
  }

  // The sum that this thread adds up. It also writes the output, except that a sum of up goes to the thread that has
  // the gate's sum.
  __device__ __forceinline__ int out_row() const { return threadIdx.x % kRowTile; }
  __device__ __forceinline__ int out_token() const { return threadIdx.x / kRowTile; }
  __device__ __forceinline__ bool adds_up() const { return out_token() < p.m && out_row() % kOutputs < rows_; }

  __device__ __forceinline__ float load_bias() const {
    const int up = kGated && out_row() >= kOutputs ? width() - kOutputs : 0;  // from the gate's row to up's
    return adds_up() && p.bias != nullptr ? to_float(p.bias[first_row_ + out_row() + up]) : 0.f;
  }

  // The addend of the output that this thread writes.
  __device__ __forceinline__ float load_addend_of(const FusionParams<T>& fusion) const {
    if constexpr (kEpilogue != Epilogue::kElementwise) return 0.f;
    return adds_up() ? load_addend(fusion, place_of_output()) : 0.f;
  }

  __device__ __forceinline__ void write_output(float bias, float addend, const FusionParams<T>& fusion) const {
    static_assert(kThreads >= 8 * kRowTile, "a thread has one output at most");
    if constexpr (kGated) {
      const float mine = adds_up() ? to_float(from_float<T>(add_up(bias))) : 0.f;
      const float up = __shfl_down_sync(0xffffffffu, mine, kOutputs);
      if (adds_up() && out_row() < kOutputs) write(activated(fusion.activation, mine) * up);
    } else if constexpr (kEpilogue == Epilogue::kElementwise) {
      if (adds_up()) write(finished(fusion, add_up(bias), addend));
    } else {
      if (adds_up()) write(add_up(bias));
    }
  }

 private:
  static constexpr bool kGated = kEpilogue == Epilogue::kGated;
  static constexpr int kOutputs = kGated ? kRowTile / 2 : kRowTile;  // of a token

  __device__ __forceinline__ int width() const { return kGated ? p.n / 2 : p.n; }  // of y

  __device__ __forceinline__ float add_up(float bias) const {
    const float* const slot = sums_ + out_token() * kWarps * kRowTile + out_row();
    float total = bias;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += slot[warp * kRowTile];
    return total;
  }

  __device__ __forceinline__ int64_t place_of_output() const {
    return static_cast<int64_t>(out_token()) * width() + first_row_ + out_row();
  }

  __device__ __forceinline__ void write(float y) const { p.y[place_of_output()] = from_float<T>(y); }

  // The weight row of a row of the tile, counted from the block's first; the last one past the end of the rows.
  __device__ __forceinline__ int row_from_first(int tile_row) const {
    return kGated ? min(tile_row % kOutputs, rows_ - 1) + tile_row / kOutputs * width() : min(tile_row, rows_ - 1);
  }

  __device__ __forceinline__ uint4* lane_codes() const {  // [units, top and bottom], kWarpSize apart
    return codes_ + warp_ * units_ * 2 * kWarpSize + threadIdx.x % kWarpSize;
  }

  const LinearParams<T>& p;
  const int token_stride_, units_, steps_, first_row_, rows_, warp_;
  const int lane_row_, lane_chunk_;  // g and t of tensor_core.cuh
  T* const x_;                       // [M, token_stride], paired
  uint4* const codes_;               // [warps], see lane_codes()
  RowScale<T>* const scales_;        // [steps, 16]
  float* const sums_;                // [M, warps, 16]
};

template <typename T, bool kNormed, Epilogue kEpilogue>
__global__ void __launch_bounds__(kThreads, kBlocks)
    decode_once_kernel(LinearParams<T> params, GroupOfChunk group_of_chunk, int token_stride, int units,
                       FusionParams<T> fusion) {
  extern __shared__ uint4 shared[];
  const Rows<T, kEpilogue> rows(params, token_stride, units, shared);
  NormedToken<T> normed_token = rows.normed_token(fusion);
  let_next_kernel_start();
  rows.copy_codes();  // weights are constants, see LinearTensors
  rows.prepare_scales(group_of_chunk);
  if constexpr (kNormed) normed_token.load_constants();
  wait_for_previous_kernel();
  const float bias = rows.load_bias(), addend = rows.load_addend_of(fusion);
  if constexpr (kNormed) {
    normed_token.fetch([] {});
  } else {
    rows.fetch_activations();
  }
  wait_for_copies<0>();
  __syncthreads();
  rows.multiply();
  __syncthreads();
  rows.write_output(bias, addend, fusion);
}

template <typename T>
cudaError_t launch(void (*kernel)(LinearParams<T>, GroupOfChunk, int, int, FusionParams<T>),
                   const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                   cudaStream_t stream) {
  const DecodeOnceShared shared(params.m, params.k);
  const dim3 grid(static_cast<unsigned>((params.n + kRowTile - 1) / kRowTile));
  return launch_kernel(kernel, grid, kThreads, shared.bytes, config.overlap, stream, params,
                       GroupOfChunk(chunks_per_group(params.k, params.group_size)), shared.token_stride, shared.units,
                       fusion);
}

}  // namespace

template <typename T>
cudaError_t launch_decode_once(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream) {
  return launch(decode_once_kernel<T, false, Epilogue::kNone>, params, FusionParams<T>{}, config, stream);
}

template <typename T>
cudaError_t launch_decode_once(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                               cudaStream_t stream) {
  switch (fusion.epilogue) {
    case Epilogue::kNone:
      if (!fusion.has_norm) break;
      return launch(decode_once_kernel<T, true, Epilogue::kNone>, params, fusion, config, stream);
    case Epilogue::kElementwise:
      return launch(fusion.has_norm ? decode_once_kernel<T, true, Epilogue::kElementwise>
                                    : decode_once_kernel<T, false, Epilogue::kElementwise>,
                    params, fusion, config, stream);
    case Epilogue::kGated:
      return launch(fusion.has_norm ? decode_once_kernel<T, true, Epilogue::kGated>
                                    : decode_once_kernel<T, false, Epilogue::kGated>,
                    params, fusion, config, stream);
  }
  return cudaErrorInvalidValue;
}

template cudaError_t launch_decode_once(const LinearParams<__half>&, const KernelConfig&, cudaStream_t);
template cudaError_t launch_decode_once(const LinearParams<__nv_bfloat16>&, const KernelConfig&, cudaStream_t);
template cudaError_t launch_decode_once(const LinearParams<__half>&, const FusionParams<__half>&, const KernelConfig&,
                                        cudaStream_t);
template cudaError_t launch_decode_once(const LinearParams<__nv_bfloat16>&, const FusionParams<__nv_bfloat16>&,
                                        const KernelConfig&, cudaStream_t);

}  // namespace awq2trt
