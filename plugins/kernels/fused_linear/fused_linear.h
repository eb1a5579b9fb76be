// A norm, a 4-bit linear layer, an activation and a sum in one: y = activation(W4A16Linear(norm(x + residual))) +
// addend, where all but the linear may be missing. This is all of the kernels' public interface; the operator is in
// plugins/FORMAT.md, section FusedLinear.
//
// In:  x, and the other inputs of ResidualNorm and W4A16Linear (residual_norm.h, w4a16_linear.h), and the addend, all
//      of one type.
// Out: y [M, N], or [M, N/2] with a gated activation, which multiplies the first half of the linear's outputs,
//      activated, with the second; and with a residual the sum [M, K]. The bits are those of the parts one after the
//      other: numbers that the parts round to store them are also rounded inside the linear's kernel. Only with a gated
//      activation inside the decode kernel and an odd ceil(K / 128), sums are added in another order.
//
// The norm of a single token is computed inside the linear's kernel, by every block for itself, and so is what follows
// the linear for up to eight tokens, and for many on Hopper. On an H100, a norm inside gained nothing at two tokens,
// and was slower from three tokens on.
#pragma once

#include <cstddef>

#include <cuda_runtime_api.h>

#include "kernels/device/device.h"
#include "kernels/gated_activation/gated_activation.h"
#include "kernels/residual_norm/residual_norm.h"
#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {

// One call's sizes. Parts that are present have the linear's M and type; the norm has its K, the activation its N, or
// half of it with gates. With an activation or an addend, the width of y is a multiple of 8.
struct FusedLinearProblem {
  GemmProblem linear;
  bool has_norm;
  NormProblem norm;
  bool has_activation;
  ActivationProblem activation;
  bool gated;       // the activation is that of the gates; else of all outputs
  bool has_addend;  // without gates only
};

// nullptr when kernels exist for the problem; otherwise the reason, as a sentence for the user.
const char* check_validity(const FusedLinearProblem& problem);

struct FusedLinearConfig {
  KernelConfig linear;
  bool norm_inside;        // inside the linear's kernel
  bool epilogue_inside;    // likewise, activation and addend
  size_t workspace_bytes;  // scratch that the launch needs, contents irrelevant before and after
};

// Pure function of its arguments; no CUDA call.
FusedLinearConfig choose_config(const FusedLinearProblem& problem, const Device& device);

// Workspace that suffices for `problem` with any number of tokens up to its M on any supported device.
size_t workspace_bound(const FusedLinearProblem& problem);

// Device pointers, aligned to 16 bytes; codes, scales, zeros and bias as in LinearTensors. With overlap, gain and norm
// bias are also read while the previous kernel may still be running. `sum` must not be the memory of x, of the residual
// or of the addend, since one block writes it while others read those, and y must not be that of the addend.
struct FusedLinearTensors {
  const void* x;          // [M, K]
  const void* residual;   // [M, K], or nullptr
  const void* gain;       // [K], or nullptr without a norm
  const void* norm_bias;  // [K], or nullptr
  const void* codes;      // [N, K] INT4
  const void* scales;     // [N, ceil(K/G)]
  const void* zeros;      // [N, ceil(K/G)] INT4, or nullptr
  const void* bias;       // [N], or nullptr
  const void* addend;     // [M, N], or nullptr
  void* y;                // [M, N], or [M, N/2] with a gated activation
  void* sum;              // [M, K]; nullptr without a residual
  void* workspace;        // config.workspace_bytes
};

// Enqueues the kernels of `config` on `stream`: a single one, or one for each part. Allocates nothing and never
// synchronizes, so it can be captured in a CUDA graph. Returns cudaErrorInvalidValue or cudaErrorMisalignedAddress for
// arguments it cannot take.
cudaError_t launch_fused_linear(const FusedLinearProblem& problem, const FusedLinearConfig& config,
                                const FusedLinearTensors& tensors, cudaStream_t stream);

}  // namespace awq2trt
