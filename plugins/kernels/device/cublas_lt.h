// cuBLASLt where the machine has it: opened when it is first asked for, never linked.
//
// In:  dense row-major matrices of one type on the current device.
// Out: y = x * W^T + b, enqueued on a stream; sums are fp32. The same call gives the same bits: the algorithm is the
//      library's first choice for the sizes, and no algorithm is allowed that adds parts in another type or order.
#pragma once

#include <cstddef>

#include <cuda_runtime_api.h>

#include "kernels/data_type.h"

namespace awq2trt {

// Scratch that multiply_by_cublas_lt() may use; what NVIDIA recommends for Hopper.
constexpr size_t kCublasLtWorkspaceBytes = size_t{32} << 20;

// One product. `y_stride` is N of the complete y where W is a slice of its rows.
struct DenseProduct {
  int m, n, k;
  int y_stride;  // elements between two rows of y
  DataType dtype;
  const void* x;        // [M, K], aligned to 16 bytes
  const void* weights;  // [N, K], aligned to 16 bytes
  const void* bias;     // [N], or nullptr
  void* y;              // [M, N] with rows y_stride apart, aligned to 16 bytes
};

// Whether the library of the CUDA runtime's major version, or of the version before or after it, can be opened.
bool has_cublas_lt();

// Returns cudaErrorNotSupported if there is no library or it has no algorithm for the sizes. Any thread may call it.
cudaError_t multiply_by_cublas_lt(const DenseProduct& product, void* workspace, cudaStream_t stream);

}  // namespace awq2trt
