// Asks the driver for its function and calls it; see tensor_map.h.
#include "kernels/device/tensor_map.h"

namespace awq2trt {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, or nullptr.
Encode encode_function() {
  static const Encode found = []() -> Encode {
    constexpr unsigned kSince = 12000;  // the CUDA version that brought it
    void* function = nullptr;
    cudaDriverEntryPointQueryResult answer = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kSince, cudaEnableDefault, &answer);
#else
    static_cast<void>(kSince);
    const cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &answer);
#endif
    if (status != cudaSuccess || answer != cudaDriverEntryPointSuccess) {
      cudaGetLastError();  // not for the next one who asks
      return nullptr;
    }
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

}  // namespace

bool has_tensor_maps() { return encode_function() != nullptr; }

cudaError_t make_tensor_map(const MatrixTiles& matrix, CUtensorMap* map) {
  const Encode encode = encode_function();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t row_bytes[] = {sizes[0] * static_cast<cuuint64_t>(matrix.element_bytes)};
  const cuuint32_t tile[] = {static_cast<cuuint32_t>(matrix.tile_columns), static_cast<cuuint32_t>(matrix.tile_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encode(map, matrix.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, 2,
             const_cast<void*>(matrix.data), sizes, row_bytes, tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             matrix.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace awq2trt
