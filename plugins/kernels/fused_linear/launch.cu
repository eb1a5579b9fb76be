// The only entry: checks the conditions that the kernels rely on, and starts the linear's kernel with the kernels of
// separately computed parts before and after it; see fused_linear.h.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/fused_linear/epilogue.h"
#include "kernels/fused_linear/fused_linear.h"
#include "kernels/fused_linear/workspace.h"
#include "kernels/w4a16_linear/fusion.cuh"

namespace awq2trt {
namespace {

// Whether choose_config() can never return this.
bool is_impossible(const FusedLinearProblem& problem, const FusedLinearConfig& config) {
  const Kernel kernel = config.linear.kernel;
  const bool decodes = kernel == Kernel::kDecode || kernel == Kernel::kDecodeOnce;
  return (config.epilogue_inside && !decodes && kernel != Kernel::kWarpgroup) ||
         (config.norm_inside && (!decodes || !problem.has_norm || problem.linear.m != 1)) ||
         (config.epilogue_inside && !problem.has_activation && !problem.has_addend);
}

bool is_complete(const FusedLinearProblem& problem, const FusedLinearConfig& config,
                 const FusedLinearTensors& tensors) {
  const GemmProblem& linear = problem.linear;
  if (tensors.x == nullptr || tensors.codes == nullptr || tensors.scales == nullptr || tensors.y == nullptr ||
      (linear.has_zeros && tensors.zeros == nullptr) || (linear.has_bias && tensors.bias == nullptr) ||
      (config.workspace_bytes > 0 && tensors.workspace == nullptr) ||
      (problem.has_addend && (tensors.addend == nullptr || tensors.addend == tensors.y))) {
    return false;
  }
  if (!problem.has_norm) return true;
  const bool has_sum = tensors.residual != nullptr && tensors.sum != nullptr && tensors.sum != tensors.x &&
                       tensors.sum != tensors.residual && tensors.sum != tensors.addend;
  return tensors.gain != nullptr && (!problem.norm.has_bias || tensors.norm_bias != nullptr) &&
         (!problem.norm.has_residual || has_sum);
}

// Starts the linear's kernel with the parts that are inside.
template <typename T>
cudaError_t launch_inside(const FusedLinearProblem& problem, const FusedLinearConfig& config,
                          const FusedLinearTensors& tensors, const LinearTensors& linear, cudaStream_t stream) {
  FusionParams<T> fusion = {};
  fusion.has_norm = config.norm_inside;
  if (config.norm_inside) {
    fusion.residual = problem.norm.has_residual ? static_cast<const T*>(tensors.residual) : nullptr;
    fusion.gain = static_cast<const T*>(tensors.gain);
    fusion.norm_bias = problem.norm.has_bias ? static_cast<const T*>(tensors.norm_bias) : nullptr;
    fusion.sum = static_cast<T*>(tensors.sum);
    fusion.epsilon = problem.norm.eps;
    fusion.rms = problem.norm.rms;
  }
  if (config.epilogue_inside) {
    fusion.epilogue = problem.gated ? Epilogue::kGated : Epilogue::kElementwise;
    fusion.has_activation = problem.has_activation;
    fusion.activation = problem.activation.activation;
    fusion.addend = problem.has_addend ? static_cast<const T*>(tensors.addend) : nullptr;
  }
  const auto params = linear_params<T>(problem.linear, linear);
  if (config.linear.kernel == Kernel::kWarpgroup) {
#ifdef AWQ2TRT_HOPPER
    return launch_warpgroup(params, fusion, config.linear, stream);
#else
    return cudaErrorNotSupported;  // choose_config() never asks for it in such a build
#endif
  }
  return config.linear.kernel == Kernel::kDecodeOnce ? launch_decode_once(params, fusion, config.linear, stream)
                                                     : launch_decode(params, fusion, config.linear, stream);
}

// Starts the separate parts, one after the other.
cudaError_t launch_parts(const FusedLinearProblem& problem, const FusedLinearConfig& config,
                         const FusedLinearTensors& tensors, cudaStream_t stream) {
  const bool overlap = config.linear.overlap;
  const FusedLinearWorkspace places(problem, config.linear.workspace_bytes);
  const auto place = [&](size_t offset) { return static_cast<uint8_t*>(tensors.workspace) + offset; };
  LinearTensors linear = {tensors.x,    tensors.codes, tensors.scales,      tensors.zeros,
                          tensors.bias, tensors.y,     place(places.linear)};
  if (problem.has_norm && !config.norm_inside) {
    const NormTensors norm = {tensors.x,         tensors.residual, tensors.gain,
                              tensors.norm_bias, tensors.sum,      place(places.normed)};
    if (const cudaError_t status = launch_residual_norm(problem.norm, norm, overlap, stream)) return status;
    linear.x = norm.y;
  }
  const bool epilogue_apart = (problem.has_activation || problem.has_addend) && !config.epilogue_inside;
  if (epilogue_apart && problem.gated) linear.y = place(places.projected);
  const auto launch = !config.norm_inside && !config.epilogue_inside ? nullptr
                      : problem.linear.dtype == DataType::kHalf      ? launch_inside<__half>
                                                                     : launch_inside<__nv_bfloat16>;
  const cudaError_t status = launch != nullptr ? launch(problem, config, tensors, linear, stream)
                                               : launch_w4a16_linear(problem.linear, config.linear, linear, stream);
  if (status != cudaSuccess || !epilogue_apart) return status;
  return problem.gated ? launch_gated_activation(problem.activation, linear.y, tensors.y, overlap, stream)
                       : launch_epilogue(problem, tensors.addend, tensors.y, overlap, stream);
}

}  // namespace

cudaError_t launch_fused_linear(const FusedLinearProblem& problem, const FusedLinearConfig& config,
                                const FusedLinearTensors& tensors, cudaStream_t stream) {
  if (check_validity(problem) != nullptr) return cudaErrorInvalidValue;
  if (problem.linear.m == 0) return cudaSuccess;
  if (is_impossible(problem, config) || !is_complete(problem, config, tensors)) return cudaErrorInvalidValue;
  const void* const pointers[] = {tensors.x,      tensors.residual, tensors.gain, tensors.norm_bias,
                                  tensors.addend, tensors.y,        tensors.sum,  tensors.workspace};
  for (const void* pointer : pointers) {
    if (!is_aligned(pointer, 16)) return cudaErrorMisalignedAddress;
  }
  FusedLinearConfig possible = config;
  if (!is_aligned(tensors.codes, 16)) possible.norm_inside = possible.epilogue_inside = false;
  return launch_parts(problem, possible, tensors, stream);
}

}  // namespace awq2trt
