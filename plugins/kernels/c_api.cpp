#include "c_api.h"

#include "bench_ceilings.h"

using awq2trt::Device;
using awq2trt::GemmProblem;
using awq2trt::KernelConfig;
using awq2trt::LinearTensors;

#define AWQ2TRT_STRING(value) #value
#define AWQ2TRT_EXPANDED(value) AWQ2TRT_STRING(value)

// What the functions below say, for a machine that cannot load the library: awq2trt/machine/foreign_library.py looks for these
// bytes.
extern "C" __attribute__((used, visibility("default"))) const char awq2trt_plugins_description[] =
    "awq2trt plugins: version=" AWQ2TRT_VERSION " architectures=" AWQ2TRT_ARCHITECTURES
    " cuda=" AWQ2TRT_EXPANDED(CUDART_VERSION);

const char* awq2trt_plugins_version() { return AWQ2TRT_VERSION; }

const char* awq2trt_plugins_architectures() { return AWQ2TRT_ARCHITECTURES; }

int awq2trt_cuda_version() { return CUDART_VERSION; }

const char* awq2trt_check_validity(const GemmProblem* problem) { return awq2trt::check_validity(*problem); }

int awq2trt_choose_config(const GemmProblem* problem, KernelConfig* config) {
  if (awq2trt::check_validity(*problem) != nullptr) return cudaErrorInvalidValue;
  Device device = {};
  const cudaError_t status = awq2trt::query_device(&device);
  if (status == cudaSuccess) *config = awq2trt::choose_config(*problem, device);
  return status;
}

int awq2trt_launch(const GemmProblem* problem, const KernelConfig* config, const LinearTensors* tensors, void* stream) {
  return awq2trt::launch_w4a16_linear(*problem, *config, *tensors, static_cast<cudaStream_t>(stream));
}

int awq2trt_launch_mma_ceiling(int iterations, int normal, float* sink, void* stream) {
  return awq2trt::launch_mma_ceiling(iterations, normal != 0, sink, static_cast<cudaStream_t>(stream));
}

int64_t awq2trt_mma_ceiling_flops(int iterations) { return awq2trt::mma_ceiling_flops(iterations); }
