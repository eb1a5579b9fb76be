// awq2trt::W4A16Linear for ONNX Runtime: y[..., N] = x[..., K] * W^T + bias with 4-bit W. On the CUDA provider the
// kernels compute it (kernels/w4a16_linear), on the CPU a plain loop (w4a16_linear_cpu.h). The op: plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_w4a16_linear_operators();

}  // namespace ort
}  // namespace awq2trt
