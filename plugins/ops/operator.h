// What the rules of every operator are written with, for any runtime. In: a runtime's shapes and types in these terms.
// Out: the text of an error in a buffer of the caller, who logs or returns it in the way of its runtime. Nothing here
// throws or allocates, and nothing knows TensorRT or ONNX Runtime.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace awq2trt {

// The domain of our operators, as in awq2trt/opset.py; tests/machine/test_plugin_library.py checks that the two agree.
constexpr char kDomain[] = "awq2trt";

// Types of tensors that a runtime may hand to an operator. Types that no operator takes appear in messages only.
enum class ElementType : int32_t { kFloat32, kFloat16, kBFloat16, kInt4, kInt8, kInt32, kInt64, kUint8, kOther };

const char* name_of(ElementType type);  // e.g. "fp16"

// Sizes of a tensor; the caller owns them.
struct Shape {
  const int64_t* sizes;
  int32_t rank;

  int64_t last() const { return sizes[rank - 1]; }
};

// Room for one line, cut at its end.
struct ErrorText {
  char text[512];
};

// Writes printf-style into `error`, and returns false, as a failed check does.
bool fail(ErrorText* error, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

// Checks an attribute of the operator `op` that can only be 0 or 1.
bool check_flag(const char* op, const char* name, int32_t value, ErrorText* error);

// Checks that a tensor of a node (an input, or after the last input an output) has the type that it must have.
bool check_tensor_type(const char* op, int32_t tensor, ElementType type, ElementType expected, ErrorText* error);

// Checks that a tensor has a type that the kernels compute in.
bool check_activations(const char* op, int32_t tensor, ElementType type, ErrorText* error);

bool has_sizes(const Shape& shape, std::initializer_list<int64_t> sizes);

bool fits_int(int64_t size);  // from 0 to the largest int

// The product of all sizes but the last; -1 if it does not fit an int. `shape` has at least one dimension.
int64_t count_rows(const Shape& shape);

}  // namespace awq2trt
