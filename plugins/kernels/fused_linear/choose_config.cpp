// Chooses which parts of a FusedLinear its linear's kernel computes. Host-only and pure, like the linear's choice.
#include "kernels/fused_linear/fused_linear.h"
#include "kernels/fused_linear/workspace.h"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

constexpr int kMaxNormTokens = 1;  // see fused_linear.h for the reason
constexpr int kWidthMultiple = 8;  // of an addend, whose kernel reads 16 bytes at once
constexpr int kAlignedCodes = 32;  // per row, so that rows start at multiples of 16 bytes

// Whether the linear's kernel has variants with all other parts: the two kernels for few tokens have, for codes that
// they read 16 bytes at a time and groups that fit their steps. Rows of gate and up must be within the 32 bits in which
// a kernel counts bytes.
bool is_fusible(const GemmProblem& p, Kernel kernel) {
  const bool groups_fit_steps = p.group_size % DecodeShared::kStep == 0 || p.group_size >= p.k;
  return (kernel == Kernel::kDecode || kernel == Kernel::kDecodeOnce) && p.k % kAlignedCodes == 0 && groups_fit_steps &&
         int64_t{p.n} * p.k / 2 <= int64_t{UINT32_MAX};
}

}  // namespace

const char* check_validity(const FusedLinearProblem& problem) {
  const GemmProblem& linear = problem.linear;
  if (!problem.has_norm && !problem.has_activation && !problem.has_addend)
    return "there must be a norm, an activation or an addend";
  if (problem.gated && (!problem.has_activation || problem.has_addend))
    return "gates need an activation, and exclude an addend";
  if (const char* const reason = check_validity(linear)) return reason;
  if (problem.has_norm) {
    const NormProblem& norm = problem.norm;
    if (const char* const reason = check_validity(norm)) return reason;
    if (norm.rows != linear.m || norm.width != linear.k || norm.dtype != linear.dtype)
      return "the norm must have the sizes and the type of the linear's inputs";
  }
  if (problem.has_activation) {
    const ActivationProblem& activation = problem.activation;
    if (const char* const reason = check_validity(activation)) return reason;
    const int gates = problem.gated ? 2 : 1;  // of an output and its gate
    if (activation.rows != linear.m || linear.n % gates != 0 || activation.width != linear.n / gates ||
        activation.dtype != linear.dtype)
      return "the activation must have the sizes and the type of the linear's outputs";
  }
  if (problem.has_addend && linear.n % kWidthMultiple != 0) return "the width of an addend must be a multiple of 8";
  return nullptr;
}

FusedLinearConfig choose_config(const FusedLinearProblem& problem, const Device& device) {
  FusedLinearConfig config = {};
  config.linear = choose_config(problem.linear, device);
  const bool fusible = is_fusible(problem.linear, config.linear.kernel);
  config.norm_inside = problem.has_norm && fusible && problem.linear.m <= kMaxNormTokens;
  const bool has_epilogue = problem.has_activation || problem.has_addend;
  config.epilogue_inside = has_epilogue && (fusible || config.linear.kernel == Kernel::kWarpgroup);
  // Also when parts are inside: if codes turn out not to be aligned, the parts are computed separately.
  config.workspace_bytes = FusedLinearWorkspace(problem, config.linear.workspace_bytes).bytes;
  return config;
}

size_t workspace_bound(const FusedLinearProblem& problem) {
  return FusedLinearWorkspace(problem, workspace_bound(problem.linear)).bytes;
}

}  // namespace awq2trt
