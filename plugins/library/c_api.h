// The library's C interface: for `awq2trt bench --kernels`, `awq2trt doctor`, and any program that wants the kernels
// without TensorRT. Pointers in LinearTensors are device pointers, `stream` is a cudaStream_t; functions that choose or
// launch return a cudaError_t.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/w4a16_linear/w4a16_linear.h"

#define AWQ2TRT_API extern "C" __attribute__((visibility("default")))

AWQ2TRT_API const char* awq2trt_plugins_version();        // of this project, e.g. "0.1.0"
AWQ2TRT_API const char* awq2trt_plugins_architectures();  // as built, e.g. "80-real,90-real,90-virtual"
AWQ2TRT_API int awq2trt_cuda_version();                   // of the CUDA runtime inside, e.g. 13000

// Why there is no kernel for the problem, or nullptr.
AWQ2TRT_API const char* awq2trt_check_validity(const awq2trt::GemmProblem* problem);
AWQ2TRT_API int awq2trt_choose_config(const awq2trt::GemmProblem* problem, awq2trt::KernelConfig* config);
AWQ2TRT_API int awq2trt_launch(const awq2trt::GemmProblem* problem, const awq2trt::KernelConfig* config,
                               const awq2trt::LinearTensors* tensors, void* stream);

// The same with 8-bit codes, which need neither a choice nor a workspace; `overlap` is 0 or 1, see KernelConfig.
AWQ2TRT_API int awq2trt_launch_w8a16(const awq2trt::GemmProblem* problem, const awq2trt::LinearTensors* tensors,
                                     int overlap, void* stream);

// Names of the values of enum Kernel, TileShape and WarpgroupTile, e.g. "decode" and "16x64"; nullptr for any other
// number.
AWQ2TRT_API const char* awq2trt_kernel_name(int kernel);
AWQ2TRT_API const char* awq2trt_tile_name(int tile);
AWQ2TRT_API const char* awq2trt_warpgroup_tile_name(int tile);

// The offset of a field of one of the three structures, for callers that declare them in another language.
struct awq2trt_field {
  const char* structure;
  const char* name;  // "" for the structure itself
  size_t offset, bytes;
};

// All of them; `count` is how many.
AWQ2TRT_API const awq2trt_field* awq2trt_fields(int* count);
