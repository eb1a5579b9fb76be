// awq2trt::GatedActivation for ONNX Runtime: y[..., I] = activation(gate) * up of x[..., 2 I]. On the CUDA provider the
// kernel computes it (kernels/gated_activation), on the CPU a plain loop. The op: plugins/FORMAT.md.
#pragma once

#include <memory>
#include <vector>

#include "kernels/gated_activation/gated_activation.h"
#include "ort/custom_operator.h"

namespace awq2trt {
namespace ort {

// For both providers: fp16 and bf16, and on the CPU fp32.
std::vector<std::unique_ptr<CustomOperator>> make_gated_activation_operators();

// The activation of one number.
double activated_on_cpu(Activation activation, double x);

// x [M, 2 I] and y [M, I] of `type` in host memory; the problem's own type is not read, since it has no fp32.
void compute_activation_on_cpu(const ActivationProblem& problem, ElementType type, const void* x, void* y);

}  // namespace ort
}  // namespace awq2trt
