// Adds up what blocks that share outputs, each with a slice of K, left in the workspace: a thread an output, slices in
// order.
//
// In:  LinearParams::partial_sums [splits, M, N] fp32, and the bias. Out: y.
#include "kernels/device/convert.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) add_splits_kernel(LinearParams<T> p, int splits) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t outputs = static_cast<int64_t>(p.m) * p.n;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= outputs) return;
  float sum = p.bias != nullptr ? to_float(p.bias[i % p.n]) : 0.f;
  for (int split = 0; split < splits; ++split) sum += p.partial_sums[split * outputs + i];
  p.y[i] = from_float<T>(sum);
}

}  // namespace

template <typename T>
cudaError_t launch_add_splits(const LinearParams<T>& params, const KernelConfig& config, cudaStream_t stream) {
  const int64_t outputs = static_cast<int64_t>(params.m) * params.n;
  const auto blocks = static_cast<unsigned>((outputs + kThreads - 1) / kThreads);
  return launch_kernel(add_splits_kernel<T>, dim3(blocks), kThreads, 0, config.overlap, stream, params, config.splits);
}

template cudaError_t launch_add_splits(const LinearParams<__half>&, const KernelConfig&, cudaStream_t);
template cudaError_t launch_add_splits(const LinearParams<__nv_bfloat16>&, const KernelConfig&, cudaStream_t);

}  // namespace awq2trt
