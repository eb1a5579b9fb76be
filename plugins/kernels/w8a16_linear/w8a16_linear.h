// W8A16 linear layer: y = x * W^T + b, W = scale * (code - zero) with 8-bit codes. This is all of the kernels' public
// interface.
//
// In:  as of the W4A16 linear (kernels/w4a16_linear/w4a16_linear.h), whose structures describe the call, but that codes
//      and zeros are INT8, a byte each; no workspace.
// Out: y [M, N] of x's type. Sums are fp32, in an order that depends on the problem only, so the same call gives the
//      same bits.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {

// Enqueues the kernel on `stream`; `overlap` as in device/overlap.cuh, for compute capability 9.0 and later, with
// codes, scales and zeros that are constants. Allocates nothing and never synchronizes, so it can be captured in a CUDA
// graph. Returns cudaErrorInvalidValue for a problem that check_validity() refuses or a tensor that is missing, and
// cudaErrorMisalignedAddress for activations or outputs that are not aligned to 16 bytes.
cudaError_t launch_w8a16_linear(const GemmProblem& problem, const LinearTensors& tensors, bool overlap,
                                cudaStream_t stream);

}  // namespace awq2trt
