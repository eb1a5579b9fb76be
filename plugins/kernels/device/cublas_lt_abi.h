// The part of cuBLASLt's C interface that we use, so that no build needs its headers: types and numbers as in
// cublasLt.h of CUDA 12 and 13. tests/plugins/kernels/device/cublas_lt_abi_test.cpp compares them with that header
// where a machine has it.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>
#include <library_types.h>

namespace awq2trt {
namespace cublas_lt_abi {

using Handle = struct OpaqueHandle*;
using MatmulDesc = struct OpaqueMatmulDesc*;
using MatrixLayout = struct OpaqueMatrixLayout*;
using Preference = struct OpaquePreference*;
using Status = int;  // cublasStatus_t

constexpr Status kSuccess = 0;
constexpr int kCompute32F = 68;    // cublasComputeType_t
constexpr int32_t kTranspose = 1;  // cublasOperation_t

// cublasLtMatmulDescAttributes_t
constexpr int kDescTransA = 3, kDescEpilogue = 7, kDescBiasPointer = 8;
// cublasLtEpilogue_t
constexpr uint32_t kEpilogueBias = 4;
// cublasLtMatmulPreferenceAttributes_t
constexpr int kMaxWorkspaceBytes = 1, kReductionSchemeMask = 3, kMinAlignmentABytes = 5, kMinAlignmentBBytes = 6,
              kMinAlignmentCBytes = 7, kMinAlignmentDBytes = 8;
// cublasLtReductionScheme_t
constexpr uint32_t kReduceInComputeType = 2;

// cublasLtMatmulAlgo_t
struct Algorithm {
  uint64_t data[8];
};

// cublasLtMatmulHeuristicResult_t
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

struct Functions {
  Status (*create)(Handle* handle);
  Status (*desc_create)(MatmulDesc* desc, int compute_type, cudaDataType scale_type);
  Status (*desc_set)(MatmulDesc desc, int attribute, const void* value, size_t bytes);
  Status (*desc_destroy)(MatmulDesc desc);
  Status (*layout_create)(MatrixLayout* layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t stride);
  Status (*layout_destroy)(MatrixLayout layout);
  Status (*preference_create)(Preference* preference);
  Status (*preference_set)(Preference preference, int attribute, const void* value, size_t bytes);
  Status (*preference_destroy)(Preference preference);
  Status (*heuristic)(Handle handle, MatmulDesc desc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d,
                      Preference preference, int wanted, HeuristicResult* results, int* found);
  Status (*matmul)(Handle handle, MatmulDesc desc, const void* alpha, const void* a, MatrixLayout a_layout,
                   const void* b, MatrixLayout b_layout, const void* beta, const void* c, MatrixLayout c_layout,
                   void* d, MatrixLayout d_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                   cudaStream_t stream);
};

}  // namespace cublas_lt_abi
}  // namespace awq2trt
