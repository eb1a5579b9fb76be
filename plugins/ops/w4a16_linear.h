// The rules of the operators W4A16Linear and W8A16Linear, y[..., N] = x[..., K] * W^T + bias with 4-bit or 8-bit W:
// their names, attributes, inputs, types and shapes, as in plugins/FORMAT.md. awq2trt/opset.py declares the same for
// Python; tests/machine/test_plugin_library.py checks that the two agree.
//
// In:  a node's attributes, and the types and shapes of its tensors.
// Out: whether they fit each other, else why not as a sentence that begins with the operator's name; and the
//      GemmProblem that the kernels solve.
//
// A check returns false and fills in `error`, or returns true and leaves it unchanged.
#pragma once

#include <cstdint>

#include "kernels/w4a16_linear/w4a16_linear.h"
#include "ops/operator.h"

namespace awq2trt {
namespace w4a16_linear {

constexpr char kName[] = "W4A16Linear";
constexpr char kName8[] = "W8A16Linear";
constexpr char kVersion[] = "1";

constexpr char kGroupSize[] = "group_size";
constexpr char kHasZeros[] = "has_zeros";
constexpr char kHasBias[] = "has_bias";

// The node's attributes. Their type is the one in which an engine stores them.
struct Attributes {
  int32_t group_size;
  int32_t has_zeros;
  int32_t has_bias;
  int32_t code_bits = 4;  // or 8: follows from the operator's name and is no attribute of the node
};

inline const char* name_of(const Attributes& attributes) { return attributes.code_bits == 8 ? kName8 : kName; }

// The type of codes and zero points.
inline ElementType code_type(int32_t code_bits) { return code_bits == 8 ? ElementType::kInt8 : ElementType::kInt4; }

// Inputs in order, without gaps: zeros and bias follow where the attributes say that they are there.
constexpr int32_t kX = 0, kCodes = 1, kScales = 2, kFirstOptional = 3;
constexpr int32_t kMaxInputs = 5;
constexpr int32_t kNoInput = -1;

inline int32_t input_count(const Attributes& attributes) { return 3 + attributes.has_zeros + attributes.has_bias; }
inline int32_t zeros_input(const Attributes& attributes) {
  return attributes.has_zeros != 0 ? kFirstOptional : kNoInput;
}
inline int32_t bias_input(const Attributes& attributes) {
  return attributes.has_bias != 0 ? kFirstOptional + attributes.has_zeros : kNoInput;
}

// What a tensor is for, which decides its type.
enum class Role {
  kActivations,      // fp16 or bf16
  kCodes,            // int4, or int8
  kLikeActivations,  // the type of x
};

// The role of an input, or of the output, which comes after the last input.
Role role_of(int32_t tensor, const Attributes& attributes);

// Checks that group_size is positive and that the other two are 0 or 1.
bool check_attributes(const Attributes& attributes, ErrorText* error);

// Checks that `count` is the number of inputs that the attributes ask for.
bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error);

// Checks that a tensor (an input, or after the last input the output) has the type of its role.
bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType x_type, ErrorText* error);

// Checks that x [..., K] and codes [N, K] have the dimensions from which the output's shape follows: the shape of x,
// with N in place of K. Sizes may still be unknown.
bool check_ranks(const Attributes& attributes, int32_t x_rank, int32_t codes_rank, ErrorText* error);

// The kernels' problem for inputs of these shapes, all sizes known, `inputs` [input_count(attributes)]; or why no
// kernel takes them, or why they do not fit each other. check_type() checks types; this takes only the type of x.
bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType x_type, GemmProblem* problem,
                      ErrorText* error);

}  // namespace w4a16_linear
}  // namespace awq2trt
