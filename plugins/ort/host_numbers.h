// Numbers of tensors in host memory as doubles, for operators on the CPU where correctness matters and speed does not.
//
// In:  tensors of fp32, fp16 or bf16.
// Out: their numbers, widened; and numbers rounded once to such a type and stored.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/operator.h"

namespace awq2trt {
namespace ort {

std::vector<double> load_numbers(const void* tensor, ElementType type, int64_t first, int64_t count);

void store_numbers(const double* numbers, int64_t count, ElementType type, void* tensor, int64_t first);

// Rounds a number as storing it in a tensor of `type` does.
double (*rounding_to(ElementType type))(double);

int64_t bytes_of_number(ElementType type);

}  // namespace ort
}  // namespace awq2trt
