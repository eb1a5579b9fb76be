// Numbers of a model's inputs, caches and scores. In: numbers as stored in memory, or float32. Out: the other of the
// two, and sizes.
#pragma once

#include <cstddef>

namespace awq2trt {

enum class Number { kFloat32, kFloat16, kBFloat16, kInt8, kInt64 };

size_t bytes_of(Number number);
// Widens `count` numbers of a floating type as stored in memory.
void widen(const void* stored, Number number, size_t count, float* result);
// The contrary, rounded to the nearest number and of two to the even one; beyond the largest one it is infinity. Whole
// numbers, which become int64, stay as they are.
void narrow(const float* wide, Number number, size_t count, void* stored);

}  // namespace awq2trt
