// The rules of the operator BestToken, y[...] = the place of the largest number of x[..., V]: its name and shapes, as
// in plugins/FORMAT.md.
//
// In:  the type and shape of x.
// Out: whether they fit, else why not as a sentence that begins with the operator's name; and the kernel's problem.
#pragma once

#include <cstdint>

#include "kernels/best_token/best_token.h"
#include "ops/operator.h"

namespace awq2trt {
namespace best_token {

constexpr char kName[] = "BestToken";

constexpr int32_t kInputs = 1;

bool check_input_count(int32_t count, ErrorText* error);

// Checks that x [..., V], sizes known or not, has the dimension that is searched.
bool check_rank(int32_t rank, ErrorText* error);

// The kernel's problem for x [..., V], all sizes known; or why the kernel does not take it.
bool describe_problem(const Shape& x, ElementType x_type, BestTokenProblem* problem, ErrorText* error);

}  // namespace best_token
}  // namespace awq2trt
