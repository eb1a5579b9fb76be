// awq2trt::BestToken for ONNX Runtime: the place of the largest score. On the CUDA provider the kernel finds it
// (kernels/best_token), on the CPU a plain loop. The op: plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_best_token_operators();

}  // namespace ort
}  // namespace awq2trt
