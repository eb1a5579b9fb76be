// Our operators as ONNX Runtime calls them: a CustomOperator declares its inputs and makes kernels, one for each node;
// a kernel computes. Neither sees ONNX Runtime's C interface: the classes below hide it.
//
// In:  a node when its kernel is made; its tensors when it computes.
// Out: outputs in the provider's memory. An operator throws Failure for anything that it does not take; the text that
//      the user reads names the node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/operator.h"
#include "ort/onnxruntime_abi.h"
#include "ort/runtime.h"

namespace awq2trt {
namespace ort {

constexpr char kCpuProvider[] = "CPUExecutionProvider";
constexpr char kCudaProvider[] = "CUDAExecutionProvider";

// Throws the error of a check of ops/ that failed.
void require(bool passed, const ErrorText& error);

// A node, while its kernel is being made.
class Node {
 public:
  Node(const Runtime& runtime, const abi::KernelInfo* info) : runtime_(runtime), info_(info) {}

  std::string name() const;
  int32_t integer_attribute(const char* name) const;           // the nearest where it does not fit 32 bits
  int32_t optional_integer_attribute(const char* name) const;  // the same; 0 where the node has none
  float float_attribute(const char* name) const;
  size_t input_count() const;
  size_t output_count() const;
  bool is_constant(size_t input) const;  // an initializer, which no node computes

 private:
  const Runtime& runtime_;
  const abi::KernelInfo* info_;
};

// An input of a node that computes.
class InputTensor {
 public:
  InputTensor(const Runtime& runtime, const abi::Value* value);

  const void* data() const { return data_; }
  ElementType type() const { return type_; }
  Shape shape() const { return {sizes_.data(), static_cast<int32_t>(sizes_.size())}; }
  const abi::MemoryInfo* memory() const { return memory_; }

 private:
  const void* data_;
  const abi::MemoryInfo* memory_;
  ElementType type_;
  std::vector<int64_t> sizes_;
};

// A node that computes: its tensors, and its provider's resources.
class Context {
 public:
  Context(const Runtime& runtime, abi::KernelContext* context) : runtime_(runtime), context_(context) {}

  InputTensor input(size_t index) const;
  void* output(size_t index, const Shape& shape) const;

  // The provider's cudaStream_t; nullptr on the CPU.
  void* stream() const;

  // Calls body(index) for every index below `count` on the threads of the session. The body must not throw.
  template <typename Body>
  void parallel_for(size_t count, const Body& body) const {
    void (*const call)(void*, size_t) = [](void* data, size_t index) noexcept {
      (*static_cast<const Body*>(data))(index);
    };
    constexpr size_t kAnyBatches = 0;
    runtime_.call(abi::kKernelContext_ParallelFor, context_, call, count, kAnyBatches, const_cast<Body*>(&body));
  }

 private:
  friend class Scratch;
  const Runtime& runtime_;
  abi::KernelContext* context_;
};

// Memory of the provider's arena, on the device of `like`, until the end of the scope. On a GPU the next owner may be
// another node of the same stream, whose kernels start after ours; so nothing waits here, and a CUDA graph can capture
// it.
class Scratch {
 public:
  Scratch(const Context& context, const InputTensor& like, size_t bytes);  // without bytes: nullptr
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return data_; }

 private:
  const Runtime& runtime_;
  abi::Allocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

// A size of a tensor while a model is loaded: a number, or the name of a size that is only known when it runs.
struct Dimension {
  int64_t size;      // below 0: not known
  std::string name;  // empty: none
};

// Shapes while a model is loaded.
class ShapeInference {
 public:
  ShapeInference(const Runtime& runtime, abi::ShapeInferContext* context) : runtime_(runtime), context_(context) {}

  std::vector<Dimension> input(size_t index) const;  // empty where nothing is known
  int64_t integer_attribute(const char* name) const;

  // Declares that an output has this type and shape. Leaves the shape open if a size has neither number nor name.
  void set_output(size_t index, abi::ElementType type, const std::vector<Dimension>& shape) const;

  // The same with the type of an input.
  void set_output_like(size_t input, size_t index, const std::vector<Dimension>& shape) const;
  void set_output_like_first_input(size_t index, const std::vector<Dimension>& shape) const {
    set_output_like(0, index, shape);
  }

 private:
  const Runtime& runtime_;
  abi::ShapeInferContext* context_;
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  // May be called by several threads at once.
  virtual void compute(const Context& context) = 0;
};

// The type of an input or output. kUndefined takes any.
struct Argument {
  abi::ElementType type;
  bool optional;
};

// One implementation of an operator: for one provider, and one type of activations.
class CustomOperator {
 public:
  virtual ~CustomOperator() = default;
  virtual const char* name() const = 0;
  virtual const char* provider() const = 0;
  virtual const std::vector<Argument>& inputs() const = 0;
  virtual const std::vector<Argument>& outputs() const = 0;
  virtual void infer_shapes(const ShapeInference& shapes) const = 0;
  virtual std::unique_ptr<Kernel> create_kernel(const Node& node) const = 0;
};

// An operator for both providers: on CUDA in fp16 and bf16, on the CPU in fp32, too.
template <typename CudaOperator, typename CpuOperator>
std::vector<std::unique_ptr<CustomOperator>> make_for_all_types() {
  std::vector<std::unique_ptr<CustomOperator>> operators;
  for (const abi::ElementType type : {abi::ElementType::kFloat16, abi::ElementType::kBFloat16}) {
    operators.push_back(std::make_unique<CudaOperator>(kCudaProvider, type));
  }
  for (const abi::ElementType type :
       {abi::ElementType::kFloat16, abi::ElementType::kBFloat16, abi::ElementType::kFloat}) {
    operators.push_back(std::make_unique<CpuOperator>(kCpuProvider, type));
  }
  return operators;
}

// A CustomOperator in the form of ONNX Runtime's C interface. It must outlive every session that uses it.
class RegisteredOperator : public abi::CustomOp {
 public:
  RegisteredOperator(const Runtime& runtime, std::unique_ptr<CustomOperator> implementation);
  RegisteredOperator(const RegisteredOperator&) = delete;
  RegisteredOperator& operator=(const RegisteredOperator&) = delete;

  const CustomOperator& implementation() const { return *implementation_; }
  const Runtime& runtime() const { return runtime_; }

 private:
  const Runtime runtime_;
  const std::unique_ptr<CustomOperator> implementation_;
};

}  // namespace ort
}  // namespace awq2trt
