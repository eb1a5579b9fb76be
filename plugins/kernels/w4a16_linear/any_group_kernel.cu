// y = x * W^T for group sizes that the fast kernels cannot split into 16-byte loads (not a multiple of 32, and shorter
// than a row): correct for every G, fast for none. One warp computes one output; its lanes take one word of 8 codes
// each in turn.
#include "kernels/device/convert.cuh"
#include "kernels/device/tensor_core.cuh"
#include "kernels/w4a16_linear/codes.cuh"
#include "kernels/w4a16_linear/dequantize.h"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

constexpr int kWarps = 8;

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) any_group_kernel(const LinearParams<T> p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (output >= static_cast<int64_t>(p.m) * p.n) return;
  const int token = static_cast<int>(output / p.n), row = static_cast<int>(output % p.n);
  const T* const x = p.x + static_cast<int64_t>(token) * p.k;
  const uint8_t* const codes = p.codes + static_cast<int64_t>(row) * (p.k / 2);

  float sum = 0.f;
  for (int k = lane * kCodesPerWord; k < p.k; k += kWarpSize * kCodesPerWord) {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(codes + k / 2);
#pragma unroll
    for (int i = 0; i < kCodesPerWord; ++i) {
      const int64_t index = static_cast<int64_t>(row) * p.groups + (k + i) / p.group_size;
      const uint32_t zero = p.zeros != nullptr ? nibble_of(p.zeros[index / 2], static_cast<uint32_t>(index)) & 0xf : 0;
      const int code = static_cast<int>((word >> (4 * i) & 0xf) ^ kSignFlip) - static_cast<int>(zero ^ kSignFlip);
      sum += to_float(x[k + i]) * (to_float(p.scales[index]) * static_cast<float>(code));
    }
  }
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (lane == 0) p.y[output] = from_float<T>(sum + (p.bias != nullptr ? to_float(p.bias[row]) : 0.f));
}

}  // namespace

template <typename T>
cudaError_t launch_any_group(const LinearParams<T>& params, cudaStream_t stream) {
  const int64_t blocks = (static_cast<int64_t>(params.m) * params.n + kWarps - 1) / kWarps;
  any_group_kernel<T><<<static_cast<unsigned>(blocks), kWarps * kWarpSize, 0, stream>>>(params);
  return cudaGetLastError();
}

template cudaError_t launch_any_group(const LinearParams<__half>&, cudaStream_t);
template cudaError_t launch_any_group(const LinearParams<__nv_bfloat16>&, cudaStream_t);

}  // namespace awq2trt
