// The rules of the operator GatedActivation, y[..., I] = activation(gate) * up with x[..., 2 I] = gate and up: its
// name, attribute and shapes, as in plugins/FORMAT.md.
//
// In:  a node's attribute, and the type and shape of x.
// Out: whether they fit, else why not as a sentence that begins with the operator's name; and the kernel's problem.
#pragma once

#include <cstdint>

#include "kernels/gated_activation/gated_activation.h"
#include "ops/operator.h"

namespace awq2trt {
namespace gated_activation {

constexpr char kName[] = "GatedActivation";
constexpr char kVersion[] = "1";
constexpr char kActivation[] = "activation";

constexpr int32_t kInputs = 1;

// The attribute is the number of an Activation.
bool check_activation(int32_t activation, ErrorText* error);

bool check_input_count(int32_t count, ErrorText* error);

// The output has the type of x.
bool check_type(int32_t tensor, ElementType type, ElementType x_type, ErrorText* error);

// Checks that x [..., 2 I], sizes known or not (below 0), has a last dimension of an even size, which can be halved.
bool check_halves(const Shape& x, ErrorText* error);

// The kernel's problem for x [..., 2 I], all sizes known; or why the kernel does not take it.
bool describe_problem(int32_t activation, const Shape& x, ElementType x_type, ActivationProblem* problem,
                      ErrorText* error);

}  // namespace gated_activation
}  // namespace awq2trt
