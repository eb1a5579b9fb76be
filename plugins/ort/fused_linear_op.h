// awq2trt::FusedLinear for ONNX Runtime: a norm, a 4-bit linear and a gated activation in one. On the CUDA provider the
// kernels compute it (kernels/fused_linear), on the CPU its parts' loops one after the other. The op:
// plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_fused_linear_operators();

}  // namespace ort
}  // namespace awq2trt
