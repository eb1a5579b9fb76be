// Where separately computed parts of a FusedLinear store their results. In: a problem, and the bytes that its linear
// needs itself. Out: the place of each result in one workspace, and the workspace's size.
#pragma once

#include <cstddef>

#include "kernels/fused_linear/fused_linear.h"

namespace awq2trt {

struct FusedLinearWorkspace {
  static constexpr size_t kAlignment = 256;  // like memory from cudaMalloc
  static constexpr size_t kNumberBytes = 2;  // fp16 or bf16

  size_t normed = 0;     // [M, K], with a norm
  size_t projected = 0;  // [M, N], with gates
  size_t linear = 0;
  size_t bytes = 0;

  FusedLinearWorkspace(const FusedLinearProblem& problem, size_t linear_bytes) {
    const GemmProblem& p = problem.linear;
    normed = take(problem.has_norm ? kNumberBytes * p.m * p.k : 0);
    projected = take(problem.gated ? kNumberBytes * p.m * p.n : 0);
    linear = take(linear_bytes);
  }

 private:
  size_t take(size_t size) {
    const size_t place = bytes;
    bytes += (size + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  }
};

}  // namespace awq2trt
