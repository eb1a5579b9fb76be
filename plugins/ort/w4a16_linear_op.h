// awq2trt::W4A16Linear and W8A16Linear for ONNX Runtime: y[..., N] = x[..., K] * W^T + bias with 4-bit or 8-bit W. On
// the CUDA provider the kernels compute them (kernels/w4a16_linear, kernels/w8a16_linear), on the CPU a plain loop
// (w4a16_linear_cpu.h). The ops: plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "kernels/w4a16_linear/w4a16_linear.h"
#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_w4a16_linear_operators();
std::vector<std::unique_ptr<CustomOperator>> make_w8a16_linear_operators();

// The linear of at least one token in host memory, on the session's threads. `like`: a tensor of x's type and memory.
void compute_linear_on_cpu(const Context& context, const InputTensor& like, const GemmProblem& problem,
                           const LinearTensors& tensors, int code_bits);

}  // namespace ort
}  // namespace awq2trt
