// The C interface of the kernels, and what the library reports about itself; see c_api.h.
#include "library/c_api.h"

#include "kernels/w8a16_linear/w8a16_linear.h"

using awq2trt::Device;
using awq2trt::GemmProblem;
using awq2trt::Kernel;
using awq2trt::KernelConfig;
using awq2trt::LinearTensors;
using awq2trt::TileShape;
using awq2trt::WarpgroupTile;

#define AWQ2TRT_STRING(value) #value
#define AWQ2TRT_EXPANDED(value) AWQ2TRT_STRING(value)

// What the functions below report, for a machine that cannot load the library: awq2trt/machine/foreign_library.py looks
// for these bytes.
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

int awq2trt_launch_w8a16(const GemmProblem* problem, const LinearTensors* tensors, int overlap, void* stream) {
  return awq2trt::launch_w8a16_linear(*problem, *tensors, overlap != 0, static_cast<cudaStream_t>(stream));
}

const char* awq2trt_kernel_name(int kernel) {
  switch (static_cast<Kernel>(kernel)) {
    case Kernel::kDecode:
      return "decode";
    case Kernel::kTile:
      return "tile";
    case Kernel::kAnyGroup:
      return "any-group";
    case Kernel::kDecodeOnce:
      return "decode-once";
    case Kernel::kWarpgroup:
      return "warpgroup";
  }
  return nullptr;
}

const char* awq2trt_tile_name(int tile) {
  switch (static_cast<TileShape>(tile)) {
    case TileShape::k16x64:
      return "16x64";
    case TileShape::k16x128:
      return "16x128";
    case TileShape::k16x192:
      return "16x192";
    case TileShape::k32x128:
      return "32x128";
    case TileShape::k64x64:
      return "64x64";
    case TileShape::k64x128:
      return "64x128";
    case TileShape::k64x192:
      return "64x192";
    case TileShape::k128x128:
      return "128x128";
    case TileShape::kCount:
      break;
  }
  return nullptr;
}

const char* awq2trt_warpgroup_tile_name(int tile) {
  switch (static_cast<WarpgroupTile>(tile)) {
    case WarpgroupTile::k128x128:
      return "128x128";
    case WarpgroupTile::k128x192:
      return "128x192";
    case WarpgroupTile::k256x64:
      return "256x64";
    case WarpgroupTile::k256x128:
      return "256x128";
    case WarpgroupTile::kCount:
      break;
  }
  return nullptr;
}

#define AWQ2TRT_STRUCTURE(structure) {#structure, "", 0, sizeof(structure)}
#define AWQ2TRT_FIELD(structure, field) {#structure, #field, offsetof(structure, field), sizeof(structure::field)}

const awq2trt_field* awq2trt_fields(int* count) {
  static constexpr awq2trt_field kFields[] = {
      AWQ2TRT_STRUCTURE(GemmProblem),
      AWQ2TRT_FIELD(GemmProblem, m),
      AWQ2TRT_FIELD(GemmProblem, n),
      AWQ2TRT_FIELD(GemmProblem, k),
      AWQ2TRT_FIELD(GemmProblem, group_size),
      AWQ2TRT_FIELD(GemmProblem, dtype),
      AWQ2TRT_FIELD(GemmProblem, has_zeros),
      AWQ2TRT_FIELD(GemmProblem, has_bias),
      AWQ2TRT_STRUCTURE(KernelConfig),
      AWQ2TRT_FIELD(KernelConfig, kernel),
      AWQ2TRT_FIELD(KernelConfig, rows_per_block),
      AWQ2TRT_FIELD(KernelConfig, warps),
      AWQ2TRT_FIELD(KernelConfig, tile),
      AWQ2TRT_FIELD(KernelConfig, warpgroup_tile),
      AWQ2TRT_FIELD(KernelConfig, splits),
      AWQ2TRT_FIELD(KernelConfig, k_per_split),
      AWQ2TRT_FIELD(KernelConfig, overlap),
      AWQ2TRT_FIELD(KernelConfig, workspace_bytes),
      AWQ2TRT_STRUCTURE(LinearTensors),
      AWQ2TRT_FIELD(LinearTensors, x),
      AWQ2TRT_FIELD(LinearTensors, codes),
      AWQ2TRT_FIELD(LinearTensors, scales),
      AWQ2TRT_FIELD(LinearTensors, zeros),
      AWQ2TRT_FIELD(LinearTensors, bias),
      AWQ2TRT_FIELD(LinearTensors, y),
      AWQ2TRT_FIELD(LinearTensors, workspace),
  };
  *count = sizeof(kFields) / sizeof(kFields[0]);
  return kFields;
}
