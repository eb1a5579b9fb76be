// awq2trt::ResidualNorm for ONNX Runtime: sum = x + residual and its norm. On the CUDA provider the kernel computes it
// (kernels/residual_norm), on the CPU a plain loop. The op: plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "kernels/residual_norm/residual_norm.h"
#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_residual_norm_operators();

// The norm of rows of `type` in host memory; the problem's own type is not read, since it has no fp32.
void compute_norm_on_cpu(const NormProblem& problem, ElementType type, const NormTensors& tensors);

}  // namespace ort
}  // namespace awq2trt
