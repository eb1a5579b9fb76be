// The only entry: checks the conditions that the kernels rely on, selects the types, and starts the kernels that
// `config` names.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

template <typename T>
cudaError_t launch_typed(const GemmProblem& problem, const KernelConfig& config, const LinearTensors& tensors,
                         cudaStream_t stream) {
  const auto params = linear_params<T>(problem, tensors);
  switch (config.kernel) {
    case Kernel::kDecode:
      return launch_decode(params, config, stream);
    case Kernel::kDecodeOnce:
      return params.codes_aligned ? launch_decode_once(params, config, stream) : launch_decode(params, config, stream);
    case Kernel::kTile:
      return launch_tile(params, config, stream);
    case Kernel::kWarpgroup:
#ifdef AWQ2TRT_HOPPER
      return params.codes_aligned ? launch_warpgroup(params, config, stream) : launch_tile(params, config, stream);
#else
      return cudaErrorNotSupported;  // choose_config() never asks for it in such a build
#endif
    case Kernel::kAnyGroup:
      return launch_any_group(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_w4a16_linear(const GemmProblem& problem, const KernelConfig& config, const LinearTensors& tensors,
                                cudaStream_t stream) {
  if (check_validity(problem) != nullptr) return cudaErrorInvalidValue;
  if (problem.m == 0) return cudaSuccess;
  const bool missing = tensors.x == nullptr || tensors.codes == nullptr || tensors.scales == nullptr ||
                       tensors.y == nullptr || (problem.has_zeros && tensors.zeros == nullptr) ||
                       (problem.has_bias && tensors.bias == nullptr) ||
                       (config.workspace_bytes > 0 && tensors.workspace == nullptr);
  if (missing) return cudaErrorInvalidValue;
  // Kernels also write y 16 bytes at a time where N allows it.
  const bool aligned = is_aligned(tensors.x, 16) && is_aligned(tensors.codes, 4) && is_aligned(tensors.y, 16) &&
                       is_aligned(tensors.scales, 2) && is_aligned(tensors.workspace, 16);
  if (!aligned) return cudaErrorMisalignedAddress;
  return problem.dtype == DataType::kHalf ? launch_typed<__half>(problem, config, tensors, stream)
                                          : launch_typed<__nv_bfloat16>(problem, config, tensors, stream);
}

}  // namespace awq2trt
