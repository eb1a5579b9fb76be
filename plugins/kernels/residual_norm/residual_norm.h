// A residual sum and its norm: sum = x + residual, y = norm(sum) * gain + bias. This is all of the kernel's public
// interface; the operator is in plugins/FORMAT.md, section ResidualNorm.
//
// In:  x, residual [M, H] fp16 or bf16, gain [H], and for layer norms an optional bias [H], all of one type.
// Out: sum [M, H], rounded to the type as a separate addition would be, and y [M, H], the norm of those rounded sums.
//      Means and squares are fp32, since residual streams reach 24,000 in fp16 models.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/data_type.h"

namespace awq2trt {

struct NormProblem {
  int rows;   // M
  int width;  // H, a multiple of 8
  float eps;
  bool rms;  // root mean square only; otherwise the mean is subtracted first
  bool has_residual;
  bool has_bias;
  DataType dtype;
};

// nullptr when a kernel exists for the problem; otherwise the reason, as a sentence for the user.
const char* check_validity(const NormProblem& problem);

// Device pointers, aligned to 16 bytes; nullptr for tensors that the problem leaves out. `sum` may be the memory of x
// or of the residual, and y that of x. With `overlap`, gain and bias are constants like the weights of a linear
// (LinearTensors): they are read while the previous kernel may still be running.
struct NormTensors {
  const void* x;         // [M, H]
  const void* residual;  // [M, H]
  const void* gain;      // [H]
  const void* bias;      // [H]
  void* sum;             // [M, H]; nullptr without a residual
  void* y;               // [M, H]
};

// Enqueues the kernel on `stream`; `overlap` as in device/overlap.cuh, for compute capability 9.0 and later. Can be
// captured in a CUDA graph.
cudaError_t launch_residual_norm(const NormProblem& problem, const NormTensors& tensors, bool overlap,
                                 cudaStream_t stream);

}  // namespace awq2trt
