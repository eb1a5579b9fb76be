// W4A16Linear and W8A16Linear on a CPU, in plain loops that the compiler vectorizes: so that a file runs without a GPU,
// and without being lowered to ONNX Runtime's own MatMulNBits, which is faster still.
//
// In:  x [M, K] fp16, bf16 or fp32, and weights as the kernels take them (LinearTensors), all in host memory.
// Out: y [M, N] of x's type; sums are fp32. The work is divided into tasks for the caller's threads.
//
// A byte holds one 8-bit code, or two 4-bit codes, of an even channel and an odd one. Activations are spread
// accordingly, once: all even channels of a row, then all odd ones, so that neither codes nor activations are ever
// interleaved. A task dequantizes a piece of a few weight rows and multiplies it with every token before it takes the
// next.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/w4a16_linear/w4a16_linear.h"
#include "ops/operator.h"

namespace awq2trt {
namespace ort {

class CpuProblem {
 public:
  // `problem` has at least one token; its dtype is not read, since it has no fp32: `type` is the type of x.
  CpuProblem(const GemmProblem& problem, const LinearTensors& tensors, ElementType type, int code_bits);

  // The spread activations, which spread_activations() fills, one task per token, before compute_rows() starts.
  size_t activations_bytes() const;
  size_t activation_tasks() const { return static_cast<size_t>(problem_.m); }
  void spread_activations(size_t task, float* spread) const noexcept;

  size_t row_tasks() const;
  void compute_rows(size_t task, const float* spread) const noexcept;

 private:
  int rows_per_task() const;
  int row_bytes() const { return problem_.k / planes_; }
  void dequantize(int row, int first_byte, int bytes, float* even, float* odd) const noexcept;
  int zero_of(int64_t group) const noexcept;
  void store(int token, int row, float sum) const noexcept;

  const GemmProblem problem_;
  const LinearTensors tensors_;
  const ElementType type_;
  const int planes_;        // codes in a byte: the channels of a row are divided into this many planes
  const int plane_stride_;  // floats of a plane of a row, padded to whole vectors
};

}  // namespace ort
}  // namespace awq2trt
