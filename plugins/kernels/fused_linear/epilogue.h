// What follows the linear of a FusedLinear, as a kernel of its own: wherever the linear's kernel cannot compute it,
// as for many tokens on most GPUs; see fused_linear.h.
//
// In:  y [M, N], the linear's outputs, and the addend [M, N], of one type.
// Out: the same y, activated and then added to the addend, and rounded after each.
#pragma once

#include "kernels/fused_linear/fused_linear.h"

namespace awq2trt {

// Enqueues the kernel for the activation and the addend of a problem without gates. The pointers are aligned to 16
// bytes; `overlap` as in device/overlap.cuh.
cudaError_t launch_epilogue(const FusedLinearProblem& problem, const void* addend, void* y, bool overlap,
                            cudaStream_t stream);

}  // namespace awq2trt
