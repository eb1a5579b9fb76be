// The inner part of a gated MLP: y = activation(gate) * up, where gate and up are the halves of one merged projection.
// This is all of the kernel's public interface; the operator is in plugins/FORMAT.md, section GatedActivation.
//
// In:  x [M, 2 I] fp16 or bf16: each row has the gate, then up. Out: y [M, I] of the same type, computed in fp32 and
//      rounded once.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/data_type.h"

namespace awq2trt {

enum class Activation : int32_t { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3 };

struct ActivationProblem {
  int rows;   // M
  int width;  // I, a multiple of 8
  Activation activation;
  DataType dtype;
};

// nullptr when a kernel exists for the problem; otherwise the reason, as a sentence for the user.
const char* check_validity(const ActivationProblem& problem);

// Enqueues the kernel on `stream`; pointers are device pointers aligned to 16 bytes, `overlap` as in
// device/overlap.cuh, for compute capability 9.0 and later. Can be captured in a CUDA graph.
cudaError_t launch_gated_activation(const ActivationProblem& problem, const void* x, void* y, bool overlap,
                                    cudaStream_t stream);

}  // namespace awq2trt
