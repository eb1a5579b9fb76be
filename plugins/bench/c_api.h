// The C interface of libawq2trt_bench.so, for `awq2trt bench --kernels`: what the GPU itself reaches, to compare the
// kernels with. It is a separate library because the plugin library is stored inside engines, where this has no place.
// `stream` is a cudaStream_t; the result of a launch is a cudaError_t.
#pragma once

#include <cstdint>

#define AWQ2TRT_API extern "C" __attribute__((visibility("default")))

AWQ2TRT_API const char* awq2trt_bench_version();  // of this project, e.g. "0.1.0"

// See bench_ceilings.h; `sink` is a device pointer.
AWQ2TRT_API int awq2trt_launch_mma_ceiling(int iterations, int normal, float* sink, void* stream);
AWQ2TRT_API int64_t awq2trt_mma_ceiling_flops(int iterations);
