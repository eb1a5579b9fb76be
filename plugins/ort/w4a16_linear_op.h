// awq2trt::W4A16Linear and W8A16Linear for ONNX Runtime: y[..., N] = x[..., K] * W^T + bias with 4-bit or 8-bit W. On
// the CUDA provider the kernels compute them (kernels/w4a16_linear, kernels/w8a16_linear), on the CPU a plain loop
// (w4a16_linear_cpu.h). The ops: plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_w4a16_linear_operators();
std::vector<std::unique_ptr<CustomOperator>> make_w8a16_linear_operators();

}  // namespace ort
}  // namespace awq2trt
