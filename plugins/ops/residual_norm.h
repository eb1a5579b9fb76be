// The rules of the operator ResidualNorm, sum = x + residual and y = norm(sum) * gain + bias over the last dimension:
// its names, attributes, inputs, types and shapes, as in plugins/FORMAT.md.
//
// In:  a node's attributes, and the types and shapes of its tensors.
// Out: whether they fit each other, else why not as a sentence that begins with the operator's name; and the kernel's
//      problem.
#pragma once

#include <cstdint>

#include "kernels/residual_norm/residual_norm.h"
#include "ops/operator.h"

namespace awq2trt {
namespace residual_norm {

constexpr char kName[] = "ResidualNorm";
constexpr char kVersion[] = "1";

constexpr char kHasResidual[] = "has_residual";
constexpr char kHasBias[] = "has_bias";
constexpr char kRms[] = "rms";
constexpr char kEpsilon[] = "epsilon";

struct Attributes {
  int32_t has_residual;
  int32_t has_bias;
  int32_t rms;
  float epsilon;
};

// Inputs in order, without gaps.
constexpr int32_t kX = 0;
constexpr int32_t kMaxInputs = 4;
constexpr int32_t kNoInput = -1;

// Outputs; the second only with a residual.
constexpr int32_t kY = 0, kSum = 1;

inline int32_t input_count(const Attributes& attributes) { return 2 + attributes.has_residual + attributes.has_bias; }
inline int32_t residual_input(const Attributes& attributes) { return attributes.has_residual != 0 ? 1 : kNoInput; }
inline int32_t gain_input(const Attributes& attributes) { return 1 + attributes.has_residual; }
inline int32_t bias_input(const Attributes& attributes) {
  return attributes.has_bias != 0 ? 2 + attributes.has_residual : kNoInput;
}

inline int32_t output_count(const Attributes& attributes) { return 1 + attributes.has_residual; }

// Checks that the three flags are 0 or 1 and that epsilon is not negative.
bool check_attributes(const Attributes& attributes, ErrorText* error);

// Checks that `count` is the number of inputs, or of outputs, that the attributes ask for.
bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error);
bool check_output_count(const Attributes& attributes, int32_t count, ErrorText* error);

// Checks that every tensor has the type of x.
bool check_type(int32_t tensor, ElementType type, ElementType x_type, ErrorText* error);

// The kernel's problem for `inputs` [input_count(attributes)], all sizes known; or why the kernel does not take them.
bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, NormProblem* problem,
                      ErrorText* error);

}  // namespace residual_norm
}  // namespace awq2trt
