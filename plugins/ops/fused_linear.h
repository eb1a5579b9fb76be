// The rules of the operator FusedLinear, y = activation(W4A16Linear(norm(x + residual))) + addend, where all but the
// linear may be missing: its name, attributes, inputs, types and shapes, as in plugins/FORMAT.md. Its parts follow the
// rules of their own operators.
//
// In:  a node's attributes, and the types and shapes of its tensors.
// Out: whether they fit each other, else why not as a sentence that begins with the operator's name; and the kernels'
//      problem.
#pragma once

#include <cstdint>

#include "kernels/fused_linear/fused_linear.h"
#include "ops/operator.h"

namespace awq2trt {
namespace fused_linear {

constexpr char kName[] = "FusedLinear";
constexpr char kVersion[] = "1";

constexpr char kGroupSize[] = "group_size";
constexpr char kHasZeros[] = "has_zeros";
constexpr char kHasBias[] = "has_bias";
constexpr char kHasNorm[] = "has_norm";
constexpr char kHasResidual[] = "has_residual";
constexpr char kHasNormBias[] = "has_norm_bias";
constexpr char kRms[] = "rms";
constexpr char kHasActivation[] = "has_activation";
constexpr char kActivation[] = "activation";
constexpr char kGated[] = "gated";
constexpr char kHasAddend[] = "has_addend";
constexpr char kEpsilon[] = "epsilon";

// The node's attributes. Attributes of a missing part are 0.
struct Attributes {
  int32_t group_size;
  int32_t has_zeros;
  int32_t has_bias;
  int32_t has_norm;
  int32_t has_residual;
  int32_t has_norm_bias;
  int32_t rms;
  int32_t has_activation;
  int32_t activation;
  int32_t gated;
  int32_t has_addend;
  float epsilon;
};

// Inputs in order, without gaps: x; residual, gain and norm bias; codes, scales, zeros and bias; addend.
constexpr int32_t kX = 0;
constexpr int32_t kMinInputs = 3, kMaxInputs = 9;
constexpr int32_t kNoInput = -1;

// Outputs; the second only with a residual.
constexpr int32_t kY = 0, kSum = 1;

inline int32_t residual_input(const Attributes& a) { return a.has_residual != 0 ? 1 : kNoInput; }
inline int32_t gain_input(const Attributes& a) { return a.has_norm != 0 ? 1 + a.has_residual : kNoInput; }
inline int32_t norm_bias_input(const Attributes& a) { return a.has_norm_bias != 0 ? 2 + a.has_residual : kNoInput; }
inline int32_t codes_input(const Attributes& a) { return 1 + a.has_residual + a.has_norm + a.has_norm_bias; }
inline int32_t scales_input(const Attributes& a) { return codes_input(a) + 1; }
inline int32_t zeros_input(const Attributes& a) { return a.has_zeros != 0 ? codes_input(a) + 2 : kNoInput; }
inline int32_t bias_input(const Attributes& a) { return a.has_bias != 0 ? codes_input(a) + 2 + a.has_zeros : kNoInput; }
inline int32_t addend_input(const Attributes& a) {
  return a.has_addend != 0 ? codes_input(a) + 2 + a.has_zeros + a.has_bias : kNoInput;
}
inline int32_t input_count(const Attributes& a) { return codes_input(a) + 2 + a.has_zeros + a.has_bias + a.has_addend; }
inline int32_t output_count(const Attributes& a) { return 1 + a.has_residual; }

// The inputs that are constants: from the first to the one before the end.
inline int32_t first_constant(const Attributes& a) { return 1 + a.has_residual; }
inline int32_t end_of_constants(const Attributes& a) { return input_count(a) - a.has_addend; }

// Checks the values of the attributes, which of them need each other, and that there is a part besides the linear.
bool check_attributes(const Attributes& attributes, ErrorText* error);

// Checks that `count` is the number of inputs, or of outputs, that the attributes ask for.
bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error);
bool check_output_count(const Attributes& attributes, int32_t count, ErrorText* error);

// Checks that a tensor (an input, or after the last input an output) has its type: codes and zeros int4, all others
// that of x.
bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType x_type, ErrorText* error);

// Checks that x [..., K] and codes [N, K], sizes known or not (below 0), have the dimensions from which the outputs'
// shapes follow.
bool check_shapes(const Attributes& attributes, int32_t x_rank, const Shape& codes, ErrorText* error);

// The size of y in place of K, for codes with N rows.
inline int64_t output_width(const Attributes& attributes, int64_t n) { return attributes.gated != 0 ? n / 2 : n; }

// The kernels' problem for inputs of these shapes, all sizes known, `inputs` [input_count(attributes)]; or why no
// kernel takes them.
bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type,
                      FusedLinearProblem* problem, ErrorText* error);

}  // namespace fused_linear
}  // namespace awq2trt
