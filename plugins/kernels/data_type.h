// The types of activations that kernels exist for, as every kernel's problem names them.
#pragma once

#include <cstdint>

namespace awq2trt {

enum class DataType : int32_t { kHalf = 0, kBFloat16 = 1 };

}  // namespace awq2trt
