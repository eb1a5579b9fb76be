// awq2trt::CachedAttention for ONNX Runtime: self-attention over a cache that it writes, in place where the caller
// binds past and present to the same memory. On the CUDA provider the kernels compute it (kernels/cached_attention), on
// the CPU their reference. The op: plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_cached_attention_operators();

}  // namespace ort
}  // namespace awq2trt
