// Numbers of a model's caches and scores. In: numbers as stored in memory. Out: their sizes, and float32.
#pragma once

#include <cstddef>

namespace awq2trt {

enum class Number { kFloat32, kFloat16, kBFloat16, kInt8 };

size_t bytes_of(Number number);
// Widens `count` numbers of a floating type as stored in memory.
void widen(const void* stored, Number number, size_t count, float* result);

}  // namespace awq2trt
