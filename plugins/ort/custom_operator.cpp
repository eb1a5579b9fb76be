// Operators behind ONNX Runtime's C interface; see custom_operator.h.
#include "ort/custom_operator.h"

#include <algorithm>
#include <limits>

namespace awq2trt {
namespace ort {
namespace {

ElementType element_type(abi::ElementType type) {
  switch (type) {
    case abi::ElementType::kFloat:
      return ElementType::kFloat32;
    case abi::ElementType::kFloat16:
      return ElementType::kFloat16;
    case abi::ElementType::kBFloat16:
      return ElementType::kBFloat16;
    case abi::ElementType::kInt4:
      return ElementType::kInt4;
    case abi::ElementType::kInt8:
      return ElementType::kInt8;
    case abi::ElementType::kInt32:
      return ElementType::kInt32;
    case abi::ElementType::kInt64:
      return ElementType::kInt64;
    case abi::ElementType::kUint8:
      return ElementType::kUint8;
    case abi::ElementType::kUndefined:
      break;
  }
  return ElementType::kOther;
}

// Type and shape of a tensor, released at the end of the scope.
class TensorInfo {
 public:
  TensorInfo(const Runtime& runtime, abi::TensorTypeAndShapeInfo* info) : runtime_(runtime), info_(info) {}
  ~TensorInfo() { runtime_.release(abi::kReleaseTensorTypeAndShapeInfo, info_); }
  TensorInfo(const TensorInfo&) = delete;
  TensorInfo& operator=(const TensorInfo&) = delete;

 private:
  const Runtime& runtime_;
  abi::TensorTypeAndShapeInfo* const info_;
};

std::vector<int64_t> sizes_of(const Runtime& runtime, const abi::TensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  runtime.call(abi::kGetDimensionsCount, info, &rank);
  std::vector<int64_t> sizes(rank);
  runtime.call(abi::kGetDimensions, info, sizes.data(), rank);
  return sizes;
}

// A kernel, and the data that its callbacks need.
struct NodeKernel {
  Runtime runtime;
  std::string node;
  std::unique_ptr<Kernel> kernel;
};

// Runs `body`, and adds the node's name to the errors that it throws.
template <typename Body>
void in_node(const std::string& node, Body&& body) {
  try {
    body();
  } catch (const Failure& failure) {
    throw Failure("node '" + node + "': " + failure.what(), failure.code());
  }
}

const RegisteredOperator& registered(const abi::CustomOp* op) { return *static_cast<const RegisteredOperator*>(op); }
const CustomOperator& implementation(const abi::CustomOp* op) { return registered(op).implementation(); }

abi::Characteristic characteristic(const Argument& argument) {
  return argument.optional ? abi::Characteristic::kOptional : abi::Characteristic::kRequired;
}

abi::Status* create_kernel(const abi::CustomOp* op, const abi::Api*, const abi::KernelInfo* info, void** kernel) {
  const Runtime& runtime = registered(op).runtime();
  *kernel = nullptr;
  return runtime.guarded([&] {
    const Node node(runtime, info);
    auto made = std::make_unique<NodeKernel>(NodeKernel{runtime, node.name(), nullptr});
    in_node(made->node, [&] { made->kernel = implementation(op).create_kernel(node); });
    *kernel = made.release();
  });
}

abi::Status* compute(void* kernel, abi::KernelContext* context) {
  const NodeKernel& made = *static_cast<NodeKernel*>(kernel);
  return made.runtime.guarded(
      [&] { in_node(made.node, [&] { made.kernel->compute(Context(made.runtime, context)); }); });
}

abi::Status* infer_shapes(const abi::CustomOp* op, abi::ShapeInferContext* context) {
  const Runtime& runtime = registered(op).runtime();
  return runtime.guarded([&] { implementation(op).infer_shapes(ShapeInference(runtime, context)); });
}

}  // namespace

void require(bool passed, const ErrorText& error) {
  if (!passed) throw Failure(error.text, abi::ErrorCode::kInvalidArgument);
}

std::string Node::name() const {
  size_t bytes = 0;
  runtime_.call(abi::kKernelInfo_GetNodeName, info_, nullptr, &bytes);
  std::string name(bytes, '\0');
  runtime_.call(abi::kKernelInfo_GetNodeName, info_, name.data(), &bytes);
  name.resize(bytes - 1);  // without the terminating zero
  return name;
}

int32_t Node::integer_attribute(const char* name) const {
  int64_t value = 0;
  runtime_.call(abi::kKernelInfoGetAttribute_int64, info_, name, &value);
  // A value beyond 32 bits is outside every attribute's range, also after it is clamped.
  return static_cast<int32_t>(
      std::clamp<int64_t>(value, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
}

int32_t Node::optional_integer_attribute(const char* name) const {
  try {
    return integer_attribute(name);
  } catch (const Failure&) {
    return 0;
  }
}

float Node::float_attribute(const char* name) const {
  float value = 0.0F;
  runtime_.call(abi::kKernelInfoGetAttribute_float, info_, name, &value);
  return value;
}

size_t Node::input_count() const {
  size_t count = 0;
  runtime_.call(abi::kKernelInfo_GetInputCount, info_, &count);
  return count;
}

size_t Node::output_count() const {
  size_t count = 0;
  runtime_.call(abi::kKernelInfo_GetOutputCount, info_, &count);
  return count;
}

bool Node::is_constant(size_t input) const {
  int constant = 0;
  const abi::Value* value = nullptr;
  runtime_.call(abi::kKernelInfoGetConstantInput_tensor, info_, input, &constant, &value);
  return constant != 0;
}

InputTensor::InputTensor(const Runtime& runtime, const abi::Value* value) {
  void* data = nullptr;  // the runtime has no other function for the data of a tensor that is only read
  runtime.call(abi::kGetTensorMutableData, const_cast<abi::Value*>(value), &data);
  data_ = data;
  runtime.call(abi::kGetTensorMemoryInfo, value, &memory_);
  abi::TensorTypeAndShapeInfo* info = nullptr;
  runtime.call(abi::kGetTensorTypeAndShape, value, &info);
  const TensorInfo owner(runtime, info);
  abi::ElementType type = abi::ElementType::kUndefined;
  runtime.call(abi::kGetTensorElementType, info, &type);
  type_ = element_type(type);
  sizes_ = sizes_of(runtime, info);
}

InputTensor Context::input(size_t index) const {
  const abi::Value* value = nullptr;
  runtime_.call(abi::kKernelContext_GetInput, context_, index, &value);
  if (value == nullptr)
    throw Failure("input " + std::to_string(index) + " is missing", abi::ErrorCode::kInvalidArgument);
  return InputTensor(runtime_, value);
}

void* Context::output(size_t index, const Shape& shape) const {
  abi::Value* value = nullptr;
  runtime_.call(abi::kKernelContext_GetOutput, context_, index, shape.sizes, static_cast<size_t>(shape.rank), &value);
  if (value == nullptr)
    throw Failure("output " + std::to_string(index) + " is missing", abi::ErrorCode::kInvalidArgument);
  void* data = nullptr;
  runtime_.call(abi::kGetTensorMutableData, value, &data);
  return data;
}

void* Context::stream() const {
  void* stream = nullptr;
  runtime_.call(abi::kKernelContext_GetGPUComputeStream, context_, &stream);
  return stream;
}

Scratch::Scratch(const Context& context, const InputTensor& like, size_t bytes) : runtime_(context.runtime_) {
  if (bytes == 0) return;
  runtime_.call(abi::kKernelContext_GetAllocator, context.context_, like.memory(), &allocator_);
  try {
    if (context.stream() != nullptr) {
      // Unlike Alloc, this knows the stream: the arena gives the memory to another stream only after ours has finished
      // with it.
      runtime_.call(abi::kKernelContext_GetScratchBuffer, context.context_, like.memory(), bytes, &data_);
    } else {
      data_ = allocator_->Alloc(allocator_, bytes);
    }
    if (data_ == nullptr) throw Failure("no memory for " + std::to_string(bytes) + " bytes of workspace");
  } catch (...) {
    runtime_.release(abi::kReleaseAllocator, allocator_);
    throw;
  }
}

Scratch::~Scratch() {
  if (allocator_ == nullptr) return;
  allocator_->Free(allocator_, data_);
  runtime_.release(abi::kReleaseAllocator, allocator_);
}

std::vector<Dimension> ShapeInference::input(size_t index) const {
  abi::TensorTypeAndShapeInfo* info = nullptr;
  runtime_.call(abi::kShapeInferContext_GetInputTypeShape, context_, index, &info);
  const std::vector<int64_t> sizes = sizes_of(runtime_, info);
  std::vector<const char*> names(sizes.size());
  runtime_.call(abi::kGetSymbolicDimensions, info, names.data(), names.size());
  std::vector<Dimension> shape;
  for (size_t i = 0; i < sizes.size(); ++i) shape.push_back({sizes[i], names[i] != nullptr ? names[i] : ""});
  return shape;
}

int64_t ShapeInference::integer_attribute(const char* name) const {
  const abi::OpAttr* attribute = nullptr;
  runtime_.call(abi::kShapeInferContext_GetAttribute, context_, name, &attribute);
  int64_t value = 0;
  size_t bytes = 0;
  runtime_.call(abi::kReadOpAttr, attribute, abi::AttributeType::kInt, &value, sizeof(value), &bytes);
  return value;
}

void ShapeInference::set_output_like(size_t input, size_t index, const std::vector<Dimension>& shape) const {
  abi::TensorTypeAndShapeInfo* like = nullptr;
  abi::ElementType type = abi::ElementType::kUndefined;
  runtime_.call(abi::kShapeInferContext_GetInputTypeShape, context_, input, &like);
  runtime_.call(abi::kGetTensorElementType, like, &type);
  set_output(index, type, shape);
}

void ShapeInference::set_output(size_t index, abi::ElementType type, const std::vector<Dimension>& shape) const {
  std::vector<int64_t> sizes;
  std::vector<const char*> names;
  for (const Dimension& dimension : shape) {
    if (dimension.size < 0 && dimension.name.empty()) return;
    sizes.push_back(dimension.size);
    names.push_back(dimension.name.c_str());
  }
  abi::TensorTypeAndShapeInfo* info = nullptr;
  runtime_.call(abi::kCreateTensorTypeAndShapeInfo, &info);
  const TensorInfo owner(runtime_, info);
  runtime_.call(abi::kSetTensorElementType, info, type);
  runtime_.call(abi::kSetDimensions, info, sizes.data(), sizes.size());
  runtime_.call(abi::kSetSymbolicDimensions, info, names.data(), names.size());
  runtime_.call(abi::kShapeInferContext_SetOutputTypeShape, context_, index, info);
}

RegisteredOperator::RegisteredOperator(const Runtime& runtime, std::unique_ptr<CustomOperator> implementation)
    : abi::CustomOp{}, runtime_(runtime), implementation_(std::move(implementation)) {
  version = abi::kApiVersion;
  GetName = [](const abi::CustomOp* op) { return ort::implementation(op).name(); };
  GetExecutionProviderType = [](const abi::CustomOp* op) { return ort::implementation(op).provider(); };
  GetInputTypeCount = [](const abi::CustomOp* op) { return ort::implementation(op).inputs().size(); };
  GetInputType = [](const abi::CustomOp* op, size_t i) { return ort::implementation(op).inputs()[i].type; };
  GetOutputTypeCount = [](const abi::CustomOp* op) { return ort::implementation(op).outputs().size(); };
  GetOutputType = [](const abi::CustomOp* op, size_t i) { return ort::implementation(op).outputs()[i].type; };
  GetInputCharacteristic = [](const abi::CustomOp* op, size_t i) {
    return characteristic(ort::implementation(op).inputs()[i]);
  };
  GetOutputCharacteristic = [](const abi::CustomOp* op, size_t i) {
    return characteristic(ort::implementation(op).outputs()[i]);
  };
  GetInputMemoryType = [](const abi::CustomOp*, size_t) { return abi::MemoryType::kDefault; };
  const auto not_variadic = [](const abi::CustomOp*) { return 0; };
  GetVariadicInputMinArity = not_variadic;
  GetVariadicInputHomogeneity = not_variadic;
  GetVariadicOutputMinArity = not_variadic;
  GetVariadicOutputHomogeneity = not_variadic;
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* kernel) { delete static_cast<NodeKernel*>(kernel); };
  InferOutputShapeFn = ort::infer_shapes;
}

}  // namespace ort
}  // namespace awq2trt
