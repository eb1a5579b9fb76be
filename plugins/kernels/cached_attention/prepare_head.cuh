// One warp prepares one head of one token for attention: clips, norms and rotates it. In, D channels of the merged
// projection; out, D channels in global or shared memory, rounded once, or their codes in the cache.
#pragma once

#include <type_traits>

#include "kernels/cached_attention/attention_params.cuh"
#include "kernels/cached_attention/codes.h"
#include "kernels/device/convert.cuh"
#include "kernels/device/tensor_core.cuh"

namespace awq2trt {

__device__ __forceinline__ float sum_over_warp(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

template <typename Params>
__device__ __forceinline__ float clipped(const Params& p, float value) {
  return p.clip > 0.f ? fminf(fmaxf(value, -p.clip), p.clip) : value;
}

// Queries and keys. `gain` is the norm's, nullptr for none; `position` the row of the rotary tables.
template <int kHeadDim, typename T, typename C>
__device__ __forceinline__ void prepare_rotated(const AttentionParams<T, C>& p, const T* source, T* target,
                                                const T* gain, int position, int lane) {
  const auto read = [&](int channel) { return clipped(p, to_float(source[channel])); };
  float factor = 1.f;
  if (gain != nullptr) {
    float squares = 0.f;
    for (int channel = lane; channel < kHeadDim; channel += kWarpSize) squares += read(channel) * read(channel);
    factor = rsqrtf(sum_over_warp(squares) / kHeadDim + p.norm_eps);
  }
  const auto normed = [&](int channel) {
    return gain != nullptr ? read(channel) * factor * to_float(gain[channel]) : read(channel);
  };
  const int pairs = p.rotary_dim / 2;
  for (int pair = lane; pair < pairs; pair += kWarpSize) {
    const int first = p.interleaved ? 2 * pair : pair, second = p.interleaved ? 2 * pair + 1 : pair + pairs;
    const float cos = to_float(p.cos[static_cast<int64_t>(position) * pairs + pair]);
    const float sin = to_float(p.sin[static_cast<int64_t>(position) * pairs + pair]);
    const float a = normed(first), b = normed(second);
    target[first] = from_float<T>(a * cos - b * sin);
    target[second] = from_float<T>(b * cos + a * sin);
  }
  for (int channel = p.rotary_dim + lane; channel < kHeadDim; channel += kWarpSize) {
    target[channel] = from_float<T>(normed(channel));
  }
}

// Values: clipped only.
template <int kHeadDim, typename T, typename C>
__device__ __forceinline__ void prepare_value(const AttentionParams<T, C>& p, const T* source, T* target, int lane) {
  for (int channel = lane; channel < kHeadDim; channel += kWarpSize) {
    target[channel] = from_float<T>(clipped(p, to_float(source[channel])));
  }
}

// Stores `numbers`, which the warp has written to shared memory, as codes and their scale.
template <int kHeadDim, typename T>
__device__ __forceinline__ void write_codes(const T* numbers, int8_t* codes, T* scale, int lane) {
  __syncwarp();
  float largest = 0.f;
  for (int channel = lane; channel < kHeadDim; channel += kWarpSize) {
    largest = fmaxf(largest, fabsf(to_float(numbers[channel])));
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  }
  const T rounded = from_float<T>(__fdiv_rn(largest, kLargestCode));
  if (lane == 0) *scale = rounded;
  const float step = to_float(rounded);
  for (int word = lane; word < kHeadDim / 4; word += kWarpSize) {
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float steps = step > 0.f ? __fdiv_rn(to_float(numbers[4 * word + i]), step) : 0.f;
      const int code = __float2int_rn(fminf(fmaxf(steps, -kLargestCode), kLargestCode));
      packed |= (static_cast<uint32_t>(code) & 0xffu) << (8 * i);
    }
    reinterpret_cast<uint32_t*>(codes)[word] = packed;
  }
  __syncwarp();  // `numbers` may be written again
}

// Writes the key of one new token and head into its slot; does nothing beyond the capacity. `scratch`: kHeadDim numbers
// of shared memory that are the warp's own, for a cache of codes.
template <int kHeadDim, typename T, typename C>
__device__ __forceinline__ void write_key(const AttentionParams<T, C>& p, int sequence, int token, int kv_head,
                                          int slot, int lane, T* scratch) {
  if (slot >= p.capacity) return;
  const int64_t row = (static_cast<int64_t>(sequence) * p.tokens + token) * (p.heads + 2 * p.kv_heads);
  const T* const key = p.qkv + (row + p.heads + kv_head) * kHeadDim;
  C* const place = p.keys + cache_row(p, sequence, kv_head, slot) * kHeadDim;
  if constexpr (std::is_same_v<C, T>) {
    prepare_rotated<kHeadDim>(p, key, place, p.key_norm, slot, lane);
  } else {
    prepare_rotated<kHeadDim>(p, key, scratch, p.key_norm, slot, lane);
    write_codes<kHeadDim>(scratch, place, p.key_scales + cache_row(p, sequence, kv_head, slot), lane);
  }
}

// Likewise its value.
template <int kHeadDim, typename T, typename C>
__device__ __forceinline__ void write_value(const AttentionParams<T, C>& p, int sequence, int token, int kv_head,
                                            int slot, int lane, T* scratch) {
  if (slot >= p.capacity) return;
  const int64_t row = (static_cast<int64_t>(sequence) * p.tokens + token) * (p.heads + 2 * p.kv_heads);
  const T* const value = p.qkv + (row + p.heads + p.kv_heads + kv_head) * kHeadDim;
  C* const place = p.values + cache_row(p, sequence, kv_head, slot) * kHeadDim;
  if constexpr (std::is_same_v<C, T>) {
    prepare_value<kHeadDim>(p, value, place, lane);
  } else {
    prepare_value<kHeadDim>(p, value, scratch, lane);
    write_codes<kHeadDim>(scratch, place, p.value_scales + cache_row(p, sequence, kv_head, slot), lane);
  }
}

}  // namespace awq2trt
