// The rules of the operators W4A16Embedding and W8A16Embedding, y[..., K] = rows ids[...] of a table of 4-bit or 8-bit
// codes: their names, attributes, inputs, types and shapes, as in plugins/FORMAT.md. awq2trt/opset.py declares the same
// for Python; tests/machine/test_plugin_library.py checks that the two agree.
//
// In:  a node's attributes, and the types and shapes of its tensors.
// Out: whether they fit each other, else why not as a sentence that begins with the operator's name; and the problem
//      that the kernel solves.
#pragma once

#include <cstdint>

#include "kernels/quantized_embedding/quantized_embedding.h"
#include "ops/operator.h"

namespace awq2trt {
namespace quantized_embedding {

constexpr char kName4[] = "W4A16Embedding";
constexpr char kName8[] = "W8A16Embedding";
constexpr char kVersion[] = "1";

constexpr char kGroupSize[] = "group_size";
constexpr char kHasZeros[] = "has_zeros";

// The node's attributes. Their type is the one in which an engine stores them.
struct Attributes {
  int32_t group_size;
  int32_t has_zeros;
  int32_t code_bits;  // 4 or 8: follows from the operator's name and is no attribute of the node
};

inline const char* name_of(const Attributes& attributes) { return attributes.code_bits == 8 ? kName8 : kName4; }

// Inputs in order; zeros where the attributes say that they are there. Scales come first, since y has their type.
constexpr int32_t kScales = 0, kCodes = 1, kIds = 2, kZeros = 3;
constexpr int32_t kMaxInputs = 4;

inline int32_t input_count(const Attributes& attributes) { return 3 + attributes.has_zeros; }

bool check_attributes(const Attributes& attributes, ErrorText* error);

// Checks that `count` is the number of inputs that the attributes ask for.
bool check_input_count(const Attributes& attributes, int32_t count, ErrorText* error);

// Checks that a tensor (an input, or after the last input the output) has its type; scales and output have the same.
bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType scales_type,
                ErrorText* error);

// Checks that codes [V, K] have the dimensions from which the output's shape follows: the shape of ids, with K
// appended.
bool check_ranks(const Attributes& attributes, int32_t codes_rank, ErrorText* error);

// The kernel's problem for inputs of these shapes, all sizes known, `inputs` [input_count(attributes)]; or why the
// kernel does not take them, or why they do not fit each other.
bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType scales_type,
                      EmbeddingProblem* problem, ErrorText* error);

}  // namespace quantized_embedding
}  // namespace awq2trt
