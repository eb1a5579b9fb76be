// Self-attention over a key-value cache of fixed capacity, from the merged projection of queries, keys and values to
// the attention's output: norms of heads, rotary embedding or ALiBi, writing the cache, and attention over its
// contents. This is all of the kernels' public interface; the operator is in plugins/FORMAT.md, section
// CachedAttention.
//
// In:  qkv [B, S, (Hq + 2 Hkv) D] fp16 or bf16: the queries, keys and values of all heads of each new token, in this
//      order; `position` [B], the cache slot of each sequence's first new token; the cache [B, Hkv, C, D].
// Out: y [B, S, Hq D]; the cache with the keys (normed, rotated) and values of the new tokens in slots position ..
//      position + S - 1. Token t sees the slots up to its own, and with a window of W only the last W of them. With
//      ends it sees further: up to visible_end of its slot, which never decreases from slot to slot; a window limits
//      how far back it sees, from its own slot.
// The cache has the type of qkv, or codes of 8 bits with a scale for each slot and key-value head.
// Scores, softmax and sums are fp32, in an order that depends on the problem, the positions and the device only, so the
// same call gives the same bits. Knows neither TensorRT nor ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/data_type.h"
#include "kernels/device/device.h"

namespace awq2trt {

enum class CacheType : int32_t {
  kAsActivations,
  kInt8,  // codes of -127 .. 127; a number is its code times the scale of its slot
};

// One call's sizes. A number of 0 leaves out the step that it belongs to.
struct AttentionProblem {
  int batch;       // B
  int tokens;      // S, new ones of each sequence
  int heads;       // Hq
  int kv_heads;    // Hkv, a divisor of Hq
  int head_dim;    // D
  int capacity;    // C
  int rotary_dim;  // leading channels of a head that are rotated; even
  int window;      // slots that a token sees, its own included
  float scale;     // of scores
  float softcap;   // scores become softcap * tanh(score / softcap)
  float clip;      // queries, keys and values are clipped to +- clip
  float norm_eps;  // of the RMS norms of queries and keys; counts where has_norms
  bool has_norms;
  bool interleaved;  // rotary pairs are neighbours, 2i and 2i + 1, rather than i and i + rotary_dim / 2
  bool has_alibi;
  DataType dtype;
  CacheType cache_type;
  bool has_visible_end;

  int heads_per_kv() const { return heads / kv_heads; }
};

// nullptr when kernels exist for the problem; otherwise the reason, as a sentence for the user.
const char* check_validity(const AttentionProblem& problem);

// How a call is computed.
enum class AttentionKernel : int32_t {
  kDecode,        // one row tile a key-value head: norms, rotation and the cache write are part of it
  kDecodeTiled,   // few tokens, several row tiles a head: the cache is written by a kernel before
  kPrefill,       // many tokens: blocks of queries share tiles of keys (prefill_kernel.cu)
  kPrefillHopper  // the same with Hopper's own products (warpgroup_kernel.cu)
};

inline bool is_prefill(AttentionKernel kernel) {
  return kernel == AttentionKernel::kPrefill || kernel == AttentionKernel::kPrefillHopper;
}

struct AttentionConfig {
  AttentionKernel kernel;
  int splits;              // kDecode, kDecodeTiled: blocks that share the keys of a row tile
  bool overlap;            // blocks may start while the previous kernel is still finishing (device/overlap.cuh)
  size_t workspace_bytes;  // scratch that the launch needs, contents irrelevant before and after
};

// Pure function of its arguments; makes no CUDA call. It does not depend on positions, so one CUDA graph serves all of
// them.
AttentionConfig choose_config(const AttentionProblem& problem, const Device& device);

// Workspace that suffices for `problem` with any number of tokens up to problem.tokens on any supported device.
size_t workspace_bound(const AttentionProblem& problem);

// Device pointers, aligned to 16 bytes; nullptr for tensors that the problem leaves out. T is the type of qkv.
struct AttentionTensors {
  const void* qkv;          // [B, S, (Hq + 2 Hkv) D] T
  const int64_t* position;  // [B], aligned to 8 bytes
  const void* cos;          // [at least C, rotary_dim / 2] T
  const void* sin;
  const void* query_norm;  // [D] T, gains
  const void* key_norm;
  const float* alibi;      // [Hq], slopes
  const void* past_key;    // [B, Hkv, C, D] T, or int8
  const void* past_value;  // may be the memory of present_value; likewise every other past and its present
  void* present_key;       // [B, Hkv, C, D] as the past
  void* present_value;
  void* y;                     // [B, S, Hq D] T
  void* workspace;             // config.workspace_bytes; nullptr if 0
  const void* past_key_scale;  // [B, Hkv, C] T, aligned to 2 bytes; of CacheType::kInt8 alone, and so those below
  const void* past_value_scale;
  void* present_key_scale;
  void* present_value_scale;
  const int64_t* visible_end;  // [at least C], aligned to 8 bytes: the last slot that each slot's token sees
};

// Enqueues the kernels of `config` on `stream`. Where past and present are different memory, the past is copied first.
// Allocates nothing and never synchronizes, so it can be captured in a CUDA graph. Positions outside the cache are
// clamped to its ends: a token beyond the capacity writes nothing, and its output is meaningless.
cudaError_t launch_cached_attention(const AttentionProblem& problem, const AttentionConfig& config,
                                    const AttentionTensors& tensors, cudaStream_t stream);

}  // namespace awq2trt
