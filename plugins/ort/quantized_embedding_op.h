// awq2trt::W4A16Embedding and W8A16Embedding for ONNX Runtime: y[..., K] = rows ids[...] of a table of 4-bit or 8-bit
// codes. On the CUDA provider the kernel computes them (kernels/quantized_embedding), on the CPU a plain loop. The ops:
// plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_w4a16_embedding_operators();
std::vector<std::unique_ptr<CustomOperator>> make_w8a16_embedding_operators();

}  // namespace ort
}  // namespace awq2trt
