// A warp's tile of 16 slots in the decode kernel: keys and values from the cache straight into the registers of
// mma.sync, for each type of the cache.
//
// In:  rows of the cache, the first slot of the tile, the end of the block's slots; queries, weights.
// Out: scores [8 rows, 16 slots] and sums [8 rows, D], in the fragments of mma.sync.
//
// A load brings a lane 16 bytes, which are 8 numbers or 16 codes. A register may stand for any channel as long as both
// operands agree, so a lane's channels of a key are the k of several instructions, and its channels of a value are the
// column of as many. Beyond the block's slots a lane reads the last slot again, and its second score is masked.
//
// A key's scale multiplies the score, and a value's the weight: a code itself is never multiplied.
#pragma once

#include "kernels/cached_attention/codes.h"
#include "kernels/cached_attention/decode_shape.h"
#include "kernels/device/convert.cuh"
#include "kernels/device/global_loads.cuh"
#include "kernels/device/half_pair.h"
#include "kernels/device/tensor_core.cuh"

namespace awq2trt {

// A lane's position: the tile's first slot, the end of the block's, and the lane's place as in tensor_core.cuh.
struct TilePlace {
  int first, end, g, t;
};

// c += a * b, where only the upper 8 rows of a are not zero. The lower half of c stays zero; it costs registers all the
// same, since the instruction takes four in a row.
template <typename T>
__device__ __forceinline__ void mma_upper(float (&c)[4], uint32_t a0, uint32_t a2, uint32_t b0, uint32_t b1) {
  mma_16x8x16(c, {a0, 0u, a2, 0u}, b0, b1, T{});
}

template <typename T, typename C, int kHeadDim>
struct DecodeTile;

// For a cache of the type of the call.
template <typename T, int kHeadDim>
struct DecodeTile<T, T, kHeadDim> {
  static constexpr int kKeyLoads = (kHeadDim + 31) / 32;    // of 16 bytes, a lane and slot
  static constexpr int kValueLoads = (kHeadDim + 63) / 64;  // likewise
  static constexpr int kLaneChannels = 8;                   // that a load of a value brings a lane
  static constexpr bool kLoadsAhead = kHeadDim <= 128;      // more channels leave no registers for the next keys

  using Keys = uint4[2][kKeyLoads];
  using Values = uint4[4][kValueLoads];
  using Sums = float[kValueLoads][kLaneChannels][4];

  __device__ __forceinline__ static void load_keys(Keys& key, const T* keys, TilePlace at) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const T* const row = keys + static_cast<int64_t>(min(at.first + 8 * i + at.g, at.end - 1)) * kHeadDim;
#pragma unroll
      for (int j = 0; j < kKeyLoads; ++j) {
        const int channel = 32 * j + 8 * at.t;
        key[i][j] = kHeadDim % 32 == 0 || channel < kHeadDim ? load_now(row + channel) : uint4{};
      }
    }
  }

  __device__ __forceinline__ static void load_values(Values& value, const T* values, TilePlace at) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = at.first + 8 * (i / 2) + 2 * at.t + i % 2;
      const T* const row = values + static_cast<int64_t>(min(slot, at.end - 1)) * kHeadDim;
#pragma unroll
      for (int j = 0; j < kValueLoads; ++j) {
        const int channel = 64 * j + 8 * at.g;
        value[i][j] = kHeadDim % 64 == 0 || channel < kHeadDim ? load_now(row + channel) : uint4{};
      }
    }
  }

  // `queries`: the lane's row g of them, in shared memory.
  __device__ __forceinline__ static void multiply_keys(float (&score)[2][4], const T* queries, const Keys& key, int t) {
#pragma unroll
    for (int j = 0; j < kKeyLoads; ++j) {
      const int channel = 32 * j + 8 * t;
      const uint4 query =
          kHeadDim % 32 == 0 || channel < kHeadDim ? *reinterpret_cast<const uint4*>(queries + channel) : uint4{};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        mma_upper<T>(score[i], query.x, query.y, key[i][j].x, key[i][j].y);
        mma_upper<T>(score[i], query.z, query.w, key[i][j].z, key[i][j].w);
      }
    }
  }

  // sum = sum * shrink + weights * values; a0 and a2 are the weights.
  __device__ __forceinline__ static void add_values(Sums& sum, float shrink, uint32_t a0, uint32_t a2,
                                                    const Values& value) {
#pragma unroll
    for (int j = 0; j < kValueLoads; ++j) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const auto word = [&](int i) { return reinterpret_cast<const uint32_t (&)[4]>(value[i][j])[e / 2]; };
        const uint32_t halves = e % 2 == 0 ? 0x5410 : 0x7632;
        const uint32_t b0 = __byte_perm(word(0), word(1), halves), b1 = __byte_perm(word(2), word(3), halves);
        sum[j][e][0] *= shrink, sum[j][e][1] *= shrink;
        mma_upper<T>(sum[j][e], a0, a2, b0, b1);
      }
    }
  }
};

// For a cache of codes.
template <typename T, int kHeadDim>
struct DecodeTile<T, int8_t, kHeadDim> {
  static constexpr int kLaneChannels = kHeadDim == 64 ? 8 : 16;  // 16 of 64 would leave half of the lanes without work
  static constexpr int kColumns = 8 * kLaneChannels;             // channels of a row that 8 lanes bring
  static constexpr int kKeyLoads = (kHeadDim + 63) / 64;         // of 16 bytes, a lane and slot
  static constexpr int kValueLoads = (kHeadDim + kColumns - 1) / kColumns;  // of kLaneChannels bytes, likewise
  static constexpr int kValueWords = kLaneChannels / 4;
  static constexpr bool kLoadsAhead = true;

  using Keys = uint4[2][kKeyLoads];
  using Values = uint32_t[4][kValueLoads][kValueWords];
  using Sums = float[kValueLoads][kLaneChannels][4];

  __device__ __forceinline__ static void load_keys(Keys& key, const int8_t* keys, TilePlace at) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int8_t* const row = keys + static_cast<int64_t>(min(at.first + 8 * i + at.g, at.end - 1)) * kHeadDim;
#pragma unroll
      for (int j = 0; j < kKeyLoads; ++j) {
        const int channel = 64 * j + 16 * at.t;
        key[i][j] = kHeadDim % 64 == 0 || channel < kHeadDim ? load_now(row + channel) : uint4{};
      }
    }
  }

  // Scales of the tile, one a lane: of keys by the lower 16 lanes, of values by the upper 16.
  __device__ __forceinline__ static uint16_t load_scale(const T* key_scales, const T* value_scales, TilePlace at,
                                                        int lane) {
    const T* const scales = lane < kDecodeSlotTile ? key_scales : value_scales;
    return load_2_now(scales + min(at.first + lane % kDecodeSlotTile, at.end - 1));
  }

  __device__ __forceinline__ static void load_values(Values& value, const int8_t* values, TilePlace at) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int slot = at.first + 8 * (i / 2) + 2 * at.t + i % 2;
      const int8_t* const row = values + static_cast<int64_t>(min(slot, at.end - 1)) * kHeadDim;
#pragma unroll
      for (int j = 0; j < kValueLoads; ++j) {
        const int channel = kColumns * j + kLaneChannels * at.g;
        const bool there = kHeadDim % kColumns == 0 || channel < kHeadDim;
        if constexpr (kLaneChannels == 8) {
          const uint2 words = there ? load_8_now(row + channel) : uint2{};
          value[i][j][0] = words.x, value[i][j][1] = words.y;
        } else {
          const uint4 words = there ? load_now(row + channel) : uint4{};
          value[i][j][0] = words.x, value[i][j][1] = words.y, value[i][j][2] = words.z, value[i][j][3] = words.w;
        }
      }
    }
  }

  __device__ __forceinline__ static void multiply_keys(float (&score)[2][4], const T* queries, const Keys& key, int t) {
#pragma unroll
    for (int j = 0; j < kKeyLoads; ++j) {
      const int channel = 64 * j + 16 * t;
      const bool there = kHeadDim % 64 == 0 || channel < kHeadDim;
      const uint4 first = there ? *reinterpret_cast<const uint4*>(queries + channel) : uint4{};
      const uint4 second = there ? *reinterpret_cast<const uint4*>(queries + channel + 8) : uint4{};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto multiply = [&](uint32_t a0, uint32_t a2, uint32_t codes) {
          const WordOfCodes numbers = numbers_of_codes<T>(codes);
          mma_upper<T>(score[i], a0, a2, numbers.pair[0], numbers.pair[1]);
        };
        multiply(first.x, first.y, key[i][j].x);
        multiply(first.z, first.w, key[i][j].y);
        multiply(second.x, second.y, key[i][j].z);
        multiply(second.z, second.w, key[i][j].w);
      }
    }
  }

  __device__ __forceinline__ static void add_values(Sums& sum, float shrink, uint32_t a0, uint32_t a2,
                                                    const Values& value) {
#pragma unroll
    for (int j = 0; j < kValueLoads; ++j) {
#pragma unroll
      for (int word = 0; word < kValueWords; ++word) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // Two channels of two neighbouring slots, the slots of a channel side by side.
          const uint32_t bytes = half == 0 ? 0x5140u : 0x7362u;
          const WordOfCodes upper = numbers_of_codes<T>(select_bytes(value[0][j][word], value[1][j][word], bytes));
          const WordOfCodes lower = numbers_of_codes<T>(select_bytes(value[2][j][word], value[3][j][word], bytes));
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float (&c)[4] = sum[j][4 * word + 2 * half + i];
            c[0] *= shrink, c[1] *= shrink;
            mma_upper<T>(c, a0, a2, upper.pair[i], lower.pair[i]);
          }
        }
      }
    }
  }
};

}  // namespace awq2trt
