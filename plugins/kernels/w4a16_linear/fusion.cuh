// What the decode kernels can compute in addition to the product, for the operator FusedLinear (kernels/fused_linear):
// the norm of a single token before it; after it an activation, gated or not, and an addend. The warpgroup kernel
// computes what comes after.
//
// In:  the token before the norm, and the norm's parameters; an output, and what is added to it.
// Out: the normed token in shared memory, in the order in which decode_kernel.cu stores activations; the final output;
//      and the launchers of both kernels. Every number equals that of the separate kernels to the bit: sums are added
//      in the order of residual_norm_kernel.cu, and numbers are rounded where those kernels store them.
#pragma once

#include "kernels/device/convert.cuh"
#include "kernels/device/global_loads.cuh"
#include "kernels/device/vector.cuh"
#include "kernels/gated_activation/activated.cuh"
#include "kernels/residual_norm/norm.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {

// What follows the product.
enum class Epilogue {
  kNone,
  kElementwise,  // an activation, an addend, or both
  kGated,        // an activation of the gates, which multiplies the other half of the outputs
};

// What a launch needs in addition to LinearParams. The kernel must not read the memory of `sum`.
template <typename T>
struct FusionParams {
  bool has_norm;
  Epilogue epilogue;
  const T* __restrict__ residual;   // [K], or nullptr
  const T* __restrict__ gain;       // [K]
  const T* __restrict__ norm_bias;  // [K], or nullptr
  T* __restrict__ sum;              // [K], with a residual
  float epsilon;
  bool rms;
  bool has_activation;  // with Epilogue::kGated there always is one
  Activation activation;
  const T* __restrict__ addend;  // [M, N], or nullptr; with Epilogue::kElementwise alone
};

// The addend of an output, which is called after the wait for the previous kernel.
template <typename T>
__device__ __forceinline__ float load_addend(const FusionParams<T>& fusion, int64_t output) {
  return fusion.addend != nullptr ? float_of_bits<T>(load_2_now(fusion.addend + output)) : 0.f;
}

// An output of the product with its activation and its addend, not rounded yet.
template <typename T>
__device__ __forceinline__ float finished(const FusionParams<T>& fusion, float y, float addend) {
  if (fusion.has_activation) y = activated(fusion.activation, to_float(from_float<T>(y)));
  return fusion.addend != nullptr ? to_float(from_float<T>(y)) + addend : y;
}

// Launch the decode kernels with a norm or an epilogue: with a norm for one token only; for codes that are aligned to
// 16 bytes, with groups that fit their steps. `config` is the one for the product alone.
template <typename T>
cudaError_t launch_decode(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                          cudaStream_t stream);
template <typename T>
cudaError_t launch_decode_once(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                               cudaStream_t stream);
// With an epilogue and without a norm, and only in builds for compute capability 9.0 (Device::wgmma).
template <typename T>
cudaError_t launch_warpgroup(const LinearParams<T>& params, const FusionParams<T>& fusion, const KernelConfig& config,
                             cudaStream_t stream);

// Where 8 activations of a token are in shared memory, in the order that decode_kernel.cu explains.
__device__ __forceinline__ int place_of_vector(int vector, int token_start = 0) {
  constexpr int kStep = DecodeShared::kStep, kVectors = kStep / kVectorLength, kLanesPerRow = kStep / kCodesPerLoad;
  constexpr int kWords = kCodesPerLoad / kCodesPerWord;
  const int at_step = vector / kVectors, chunk = vector / kWords % kLanesPerRow, word = vector % kWords;
  return token_start + at_step * kStep + word * kCodesPerLoad + chunk * kVectorLength;
}

// The norm of one token, computed by all threads of a block, each of which does the work of two threads of
// residual_norm_kernel.cu.
template <typename T>
class NormedToken {
 public:
  static constexpr int kThreads = kNormThreads / 2;

  // `token`: its shared memory, `vectors` x 8 numbers with zeros from K on, followed by their padding.
  __device__ __forceinline__ NormedToken(const LinearParams<T>& params, const FusionParams<T>& fusion, T* token,
                                         int vectors)
      : p(params), f(fusion), token_(token), vectors_(vectors), row_vectors_(params.k / kVectorLength) {}

  // Loads the gain for the thread's first vectors, which are all of them up to K = 4096; everything else that the norm
  // needs goes into the L2 cache, which has not held it since the token before. These are constants like the weights,
  // so they need not wait for the previous kernel.
  __device__ __forceinline__ void load_constants() {
#pragma unroll
    for (int r = 0; r < kRound; ++r) {
      const int vector = static_cast<int>(threadIdx.x) + r * kThreads;
      if (vector < row_vectors_) gain_[r] = load_constant(f.gain, vector);
    }
    if (blockIdx.x != 0) return;
    for (int vector = threadIdx.x; vector < row_vectors_; vector += kThreads) {
      if (vector >= kNormThreads) prefetch_to_l2(f.gain + vector * kVectorLength);
      if (f.norm_bias != nullptr) prefetch_to_l2(f.norm_bias + vector * kVectorLength);
    }
  }

  // Every thread calls `after_first_loads` once, when it has started to load its first activations.
  template <typename Body>
  __device__ __forceinline__ void fetch(const Body& after_first_loads) const {
    float sums[kRound] = {};  // of numbers, or of their squares for an RMS norm
    for (int start = 0; start == 0 || start < vectors_; start += kNormThreads) {
      uint4 x[kRound] = {}, residual[kRound] = {};
#pragma unroll
      for (int r = 0; r < kRound; ++r) {
        const int vector = start + static_cast<int>(threadIdx.x) + r * kThreads;
        if (vector >= row_vectors_) continue;
        x[r] = load_now(p.x + vector * kVectorLength);
        if (f.residual != nullptr) residual[r] = load_now(f.residual + vector * kVectorLength);
      }
      if (start == 0) after_first_loads();
#pragma unroll
      for (int r = 0; r < kRound; ++r) {
        const int vector = start + static_cast<int>(threadIdx.x) + r * kThreads;
        if (vector < vectors_) sums[r] = add_up(vector, x[r], residual[r], sums[r]);
      }
    }
    float mean = 0.f;
    if (!f.rms) {
      mean = sum_over_block(sums) / static_cast<float>(p.k);
      sums[0] = sums[1] = 0.f;
      for_vectors([&](int r, int vector, bool) {
        float values[kVectorLength];
        load_vector(values, token_ + place_of_vector(vector));
#pragma unroll
        for (int i = 0; i < kVectorLength; ++i) sums[r] = add_square(sums[r], values[i], mean);
      });
    }
    const float factor = norm_factor(sum_over_block(sums), p.k, f.epsilon);
    for_vectors([&](int r, int vector, bool is_first) {
      normalize(vector, mean, factor, is_first ? gain_[r] : load_constant(f.gain, vector));
    });
  }

 private:
  static constexpr int kRound = 2;  // vectors that a thread takes at once, one for each thread that it stands for
  static constexpr int kWarps = kThreads / kWarpSize;

  static __device__ __forceinline__ uint4 load_constant(const T* tensor, int vector) {
    return __ldg(reinterpret_cast<const uint4*>(tensor) + vector);
  }

  // body(place in its round, vector, whether the round is the first) for every vector of the token and this thread.
  template <typename Body>
  __device__ __forceinline__ void for_vectors(const Body& body) const {
    for (int start = 0; start < row_vectors_; start += kNormThreads) {
#pragma unroll
      for (int r = 0; r < kRound; ++r) {
        const int vector = start + static_cast<int>(threadIdx.x) + r * kThreads;
        if (vector < row_vectors_) body(r, vector, start == 0);
      }
    }
  }

  // Writes x + residual to shared memory, and in one block also to the output; returns `sum` plus what the norm needs.
  __device__ __forceinline__ float add_up(int vector, uint4 x, uint4 residual, float sum) const {
    float values[kVectorLength], added[kVectorLength];
    widen_vector<T>(values, x);
    if (f.residual != nullptr) {
      widen_vector<T>(added, residual);
#pragma unroll
      for (int i = 0; i < kVectorLength; ++i) values[i] = to_float(from_float<T>(values[i] + added[i]));
      if (blockIdx.x == 0 && vector < row_vectors_) store_vector(f.sum + vector * kVectorLength, values);
    }
    store_vector(token_ + place_of_vector(vector), values);
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) sum = f.rms ? add_square(sum, values[i], 0.f) : sum + values[i];
    return sum;
  }

  __device__ __forceinline__ void normalize(int vector, float mean, float factor, uint4 gains) const {
    T* const place = token_ + place_of_vector(vector);
    float values[kVectorLength], gain[kVectorLength], bias[kVectorLength] = {};
    load_vector(values, place);
    widen_vector<T>(gain, gains);
    if (f.norm_bias != nullptr) widen_vector<T>(bias, load_constant(f.norm_bias, vector));
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) values[i] = normalized(values[i], mean, factor, gain[i], bias[i]);
    *reinterpret_cast<uint4*>(place) = pair_activations(rounded_vector<T>(values));
  }

  // Sums two values of each thread of the block; every thread gets the sum. The warps' sums pass through the padding.
  __device__ __forceinline__ float sum_over_block(const float (&values)[kRound]) const {
    static_assert(sizeof(T) * DecodeShared::kTokenPadding >= sizeof(float) * kRound * kWarps, "they fit the padding");
    float* const slots = reinterpret_cast<float*>(token_ + vectors_ * kVectorLength);
    const float sums[kRound] = {sum_over_warp(values[0]), sum_over_warp(values[1])};
    __syncthreads();  // the sum before this one has been read
    if (threadIdx.x % kWarpSize == 0) {
      slots[threadIdx.x / kWarpSize] = sums[0];
      slots[threadIdx.x / kWarpSize + kWarps] = sums[1];
    }
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int warp = 0; warp < kRound * kWarps; ++warp) total += slots[warp];
    return total;
  }

  const LinearParams<T>& p;
  const FusionParams<T>& f;
  T* const token_;
  const int vectors_, row_vectors_;
  uint4 gain_[kRound] = {};
};

}  // namespace awq2trt
