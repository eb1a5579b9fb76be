// Rows of a table of 4-bit or 8-bit codes: y[i] = scale * (code - zero) of row ids[i]. This is all of the kernel's
// public interface; the operators are in plugins/FORMAT.md, section W4A16Embedding.
//
// In:  ids int64 [M]; codes INT4 or INT8 [V, K]; scales [V, ceil(K/G)] fp16 or bf16; optional zeros of the codes' type
//      and the scales' shape. Bytes as in FORMAT.md; all on the device.
// Out: y [M, K] of the scales' type, rounded once; zeros for an id that is no row.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/data_type.h"

namespace awq2trt {

struct EmbeddingProblem {
  int rows;        // M: ids
  int vocabulary;  // V
  int width;       // K, a multiple of 8
  int group_size;  // G, neighbours of a row that share a scale; the last group of a row may be shorter
  int code_bits;   // 4 or 8
  DataType dtype;
  bool has_zeros;

  int groups() const { return (width - 1) / group_size + 1; }
};

struct EmbeddingTensors {
  const void* scales;  // [V, groups]
  const void* codes;   // [V, K]
  const int64_t* ids;  // [M]
  const void* zeros;   // [V, groups], or nullptr
  void* y;             // [M, K], aligned to 16 bytes
};

// nullptr when a kernel exists for the problem; otherwise the reason, as a sentence for the user.
const char* check_validity(const EmbeddingProblem& problem);

// Enqueues the kernel on `stream`; `overlap` as in device/overlap.cuh, for compute capability 9.0 and later. Can be
// captured in a CUDA graph.
cudaError_t launch_quantized_embedding(const EmbeddingProblem& problem, const EmbeddingTensors& tensors, bool overlap,
                                       cudaStream_t stream);

}  // namespace awq2trt
