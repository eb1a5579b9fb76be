// Tells Hopper's copy engine (TMA) where a matrix is and which tiles of it will be copied; bulk_copy.cuh copies them.
//
// In:  a row-major matrix in global memory, and the sizes of a tile.
// Out: the description that a kernel takes as a __grid_constant__ parameter. It is made on the host by the driver,
//      which is asked for the function and not linked: the library must load on machines without a driver.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace awq2trt {

struct MatrixTiles {
  const void* data;   // aligned to 16 bytes
  int element_bytes;  // 1 or 2
  int rows, columns;
  int tile_rows, tile_columns;  // at most 256 each
  bool swizzled;                // for wgmma (wgmma.cuh): a tile's rows have 128 bytes
};

// Whether the driver can make tensor maps.
bool has_tensor_maps();

// The matrix's rows must be multiples of 16 bytes. Returns cudaErrorNotSupported without a driver that can make tensor
// maps, and cudaErrorInvalidValue if it refuses the matrix.
cudaError_t make_tensor_map(const MatrixTiles& matrix, CUtensorMap* map);

}  // namespace awq2trt
