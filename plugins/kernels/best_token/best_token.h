// Finds the place of the largest score of each row: the next token in greedy decoding. This is all of the kernel's
// public interface; the operator is in plugins/FORMAT.md, section BestToken.
//
// In:  scores [M, V] fp16 or bf16. Out: y [M] int64, the first of equal scores; a NaN never wins over a number.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/data_type.h"

namespace awq2trt {

struct BestTokenProblem {
  int rows;        // M
  int vocabulary;  // V
  DataType dtype;
};

// nullptr when a kernel exists for the problem; otherwise the reason, as a sentence for the user.
const char* check_validity(const BestTokenProblem& problem);

// Enqueues the kernel on `stream`; pointers are device pointers, the scores' aligned to 16 bytes, `overlap` as in
// device/overlap.cuh, for compute capability 9.0 and later. Can be captured in a CUDA graph.
cudaError_t launch_best_token(const BestTokenProblem& problem, const void* scores, int64_t* y, bool overlap,
                              cudaStream_t stream);

}  // namespace awq2trt
