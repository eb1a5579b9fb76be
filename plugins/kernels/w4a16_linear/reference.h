// The CPU reference of the op: what FORMAT.md says, in the order it says it, in double precision.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {

// The signed INT4 at `index` of a packed tensor.
int int4_at(const uint8_t* packed, int64_t index);

// W [N, K] = scale * (code - zero). `scales` [N, ceil(K/G)] already widened; `zeros` may be nullptr.
std::vector<double> dequantize_weights(const GemmProblem& problem, const uint8_t* codes, const double* scales,
                                       const uint8_t* zeros);

// y [M, N] = x [M, K] * W^T + bias; `bias` may be nullptr.
std::vector<double> linear_reference(const GemmProblem& problem, const double* x, const std::vector<double>& weights,
                                     const double* bias);

}  // namespace awq2trt
