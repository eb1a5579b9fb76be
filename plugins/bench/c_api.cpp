// The C interface over bench_ceilings.cu; see c_api.h.
#include "bench/c_api.h"

#include "bench/bench_ceilings.h"

const char* awq2trt_bench_version() { return AWQ2TRT_VERSION; }

int awq2trt_launch_mma_ceiling(int iterations, int normal, float* sink, void* stream) {
  return awq2trt::launch_mma_ceiling(iterations, normal != 0, sink, static_cast<cudaStream_t>(stream));
}

int64_t awq2trt_mma_ceiling_flops(int iterations) { return awq2trt::mma_ceiling_flops(iterations); }
