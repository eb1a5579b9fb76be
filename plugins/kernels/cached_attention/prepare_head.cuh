// One head of one token made ready for attention, by one warp: clipped, normed, rotated. In, D channels of the merged
// projection; out, D channels in global or shared memory, rounded once.
#pragma once

#include "kernels/cached_attention/attention_params.cuh"
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

template <typename T>
__device__ __forceinline__ float clipped(const AttentionParams<T>& p, float value) {
  return p.clip > 0.f ? fminf(fmaxf(value, -p.clip), p.clip) : value;
}

// Queries and keys. `gain` is the norm's, nullptr for none; `position` the row of the rotary tables.
template <typename T, int kHeadDim>
__device__ __forceinline__ void prepare_rotated(const AttentionParams<T>& p, const T* source, T* target, const T* gain,
                                                int position, int lane) {
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
template <typename T, int kHeadDim>
__device__ __forceinline__ void prepare_value(const AttentionParams<T>& p, const T* source, T* target, int lane) {
  for (int channel = lane; channel < kHeadDim; channel += kWarpSize) {
    target[channel] = from_float<T>(clipped(p, to_float(source[channel])));
  }
}

// The key of one new token and head, into its slot; nothing beyond the capacity.
template <typename T, int kHeadDim>
__device__ __forceinline__ void write_key(const AttentionParams<T>& p, int sequence, int token, int kv_head, int slot,
                                          int lane) {
  if (slot >= p.capacity) return;
  const int64_t row = (static_cast<int64_t>(sequence) * p.tokens + token) * (p.heads + 2 * p.kv_heads);
  const T* const key = p.qkv + (row + p.heads + kv_head) * kHeadDim;
  T* const place = p.keys + cache_row(p, sequence, kv_head, slot) * kHeadDim;
  prepare_rotated<T, kHeadDim>(p, key, place, p.key_norm, slot, lane);
}

// Likewise its value.
template <typename T, int kHeadDim>
__device__ __forceinline__ void write_value(const AttentionParams<T>& p, int sequence, int token, int kv_head, int slot,
                                            int lane) {
  if (slot >= p.capacity) return;
  const int64_t row = (static_cast<int64_t>(sequence) * p.tokens + token) * (p.heads + 2 * p.kv_heads);
  const T* const value = p.qkv + (row + p.heads + p.kv_heads + kv_head) * kHeadDim;
  prepare_value<T, kHeadDim>(p, value, p.values + cache_row(p, sequence, kv_head, slot) * kHeadDim, lane);
}

}  // namespace awq2trt
