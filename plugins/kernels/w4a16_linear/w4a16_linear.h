// W4A16 linear layer: y = x * W^T + b, W = scale * (code - zero). This is all of the kernels' public interface.
//
// In:  x [M, K] fp16 or bf16; codes INT4 [N, K]; scales [N, ceil(K/G)] of x's type; optional zeros INT4 of the scales'
//      shape; optional bias [N] of x's type. Bytes as in plugins/FORMAT.md; all on the device.
// Out: y [M, N] of x's type. Sums are fp32, in an order that depends on the problem and the device only, so the same
//      call gives the same bits.
// Knows neither TensorRT nor PyTorch. Design and measurements: the README.md beside this file.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/data_type.h"
#include "kernels/device/device.h"

namespace awq2trt {

// K must be a multiple of it: kernels read codes in words of 32 bits, and a row's last word must not reach into the
// next row. awq2trt/opset.py declares the same for Python; tests/machine/test_plugin_library.py checks that the two
// agree.
constexpr int kFeaturesMultiple = 8;

// One call's sizes; the names are those of FORMAT.md.
struct GemmProblem {
  int m;           // rows of x: tokens
  int n;           // output features
  int k;           // input features
  int group_size;  // G, weights along K that share a scale; the last group of a row may be shorter
  DataType dtype;
  bool has_zeros;
  bool has_bias;

  int groups() const { return (k - 1) / group_size + 1; }  // no overflow for any positive int
};

// nullptr when kernels exist for the problem; otherwise the reason, as a sentence for the user.
const char* check_validity(const GemmProblem& problem);

enum class Kernel : int32_t {
  kDecode,      // few tokens: the bytes of the weights set the time (decode_kernel.cu)
  kTile,        // many tokens: the tensor cores set the time (tile_kernel.cu)
  kAnyGroup,    // group sizes the two cannot split evenly: correct, not fast (any_group_kernel.cu)
  kDecodeOnce,  // few tokens, few weights: the gap between two launches sets the time (decode_once_kernel.cu)
  kWarpgroup,   // many tokens, on a GPU whose own products are twice as fast: Hopper (warpgroup_kernel.cu)
};

// Tile kernels that exist, by tokens x weight rows of a block.
enum class TileShape : int32_t { k16x64, k16x128, k16x192, k32x128, k64x64, k64x128, k64x192, k128x128, kCount };

// The same of warpgroup kernels.
enum class WarpgroupTile : int32_t { k128x128, k128x192, k256x64, k256x128, kCount };

struct KernelConfig {
  Kernel kernel;
  int rows_per_block;            // kDecode: weight rows of a block, a multiple of 16; kDecodeOnce: 16
  int warps;                     // kDecode: warps of a block; they share its weights; kDecodeOnce: 8
  TileShape tile;                // kTile, and kWarpgroup if codes turn out not to be aligned
  WarpgroupTile warpgroup_tile;  // kWarpgroup
  int splits;                    // kTile: blocks that share one tile, each with a slice of K
  int k_per_split;               // kTile: length of that slice, a multiple of 128
  bool overlap;                  // blocks may start while the previous kernel is still finishing (overlap.cuh)
  size_t workspace_bytes;        // scratch that the launch needs, contents irrelevant before and after
};

// Pure function of its arguments; no CUDA call.
KernelConfig choose_config(const GemmProblem& problem, const Device& device);

// Workspace that suffices for `problem` with any number of tokens up to problem.m on any supported device: an engine
// built on another machine than it runs on must reserve this much.
size_t workspace_bound(const GemmProblem& problem);

// Device pointers. Codes are aligned to 4 bytes; to 16, with K a multiple of 32, they are read faster.
//
// Codes, scales and zeros are constants, as weights of an engine are. With KernelConfig::overlap they are read while
// the previous kernel may still be running, so no kernel may write them unless something other than a kernel launch (an
// event, a copy, a synchronization, a launch without overlap) separates it from this launch.
struct LinearTensors {
  const void* x;       // [M, K], aligned to 16 bytes
  const void* codes;   // [N, K] INT4
  const void* scales;  // [N, ceil(K/G)]
  const void* zeros;   // [N, ceil(K/G)] INT4, or nullptr
  const void* bias;    // [N], or nullptr
  void* y;             // [M, N], aligned to 16 bytes
  void* workspace;     // config.workspace_bytes, aligned to 16 bytes; nullptr if 0
};

// Enqueues the kernels of `config` on `stream`. Allocates nothing and never synchronizes, so it can be captured in a
// CUDA graph. Returns cudaErrorInvalidValue or cudaErrorMisalignedAddress for arguments it cannot take.
cudaError_t launch_w4a16_linear(const GemmProblem& problem, const KernelConfig& config, const LinearTensors& tensors,
                                cudaStream_t stream);

}  // namespace awq2trt
