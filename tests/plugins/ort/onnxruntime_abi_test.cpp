// Compares plugins/ort/onnxruntime_abi.h with ONNX Runtime's own header: every place, size and number that we declare.
// Built where that header is installed (-DOnnxRuntime_ROOT, or Debian's libonnxruntime-dev).
#include "ort/onnxruntime_abi.h"

#include <cstddef>
#include <type_traits>

#include <gtest/gtest.h>
#include <onnxruntime_c_api.h>

namespace awq2trt {
namespace ort {
namespace abi {
namespace {

// Translates one of our declarations into ONNX Runtime's names of types. All pointers are equal for a call, as are
// enumerations over int; swapped parameters show because their kinds differ.
enum class Kind { kVoid, kPointer, kFunction, kInteger32, kInteger64 };

template <typename T>
constexpr Kind kind_of() {
  if constexpr (std::is_void_v<T>) {
    return Kind::kVoid;
  } else if constexpr (std::is_pointer_v<T>) {
    return std::is_function_v<std::remove_pointer_t<T>> ? Kind::kFunction : Kind::kPointer;
  } else {
    return sizeof(T) == 4 ? Kind::kInteger32 : Kind::kInteger64;
  }
}

template <typename Ours, typename Theirs>
struct SameCall : std::false_type {};

template <typename R, typename... P, typename S, typename... Q>
struct SameCall<R(P...), S(Q...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(P) != sizeof...(Q)) {
      return false;
    } else {
      return kind_of<R>() == kind_of<S>() && ((kind_of<P>() == kind_of<Q>()) && ...);
    }
  }();
};

template <typename Ours, typename S, typename... Q>
struct SameCall<Ours, S(Q...) noexcept> : SameCall<Ours, S(Q...)> {};

template <typename Ours, typename Theirs>
constexpr bool same_call(Slot<Ours>, Theirs*) {
  return SameCall<Ours, Theirs>::value;
}

#define EXPECT_IN_TABLE(name)                                                     \
  EXPECT_EQ(k##name.index * sizeof(void (*)()), offsetof(OrtApi, name)) << #name; \
  static_assert(same_call(k##name, decltype(OrtApi::name){}), #name)

TEST(OnnxRuntimeAbi, FunctionsAreWhereTheHeaderHasThem) {
  EXPECT_IN_TABLE(CreateStatus);
  EXPECT_IN_TABLE(GetErrorCode);
  EXPECT_IN_TABLE(GetErrorMessage);
  EXPECT_IN_TABLE(ReleaseStatus);
  EXPECT_IN_TABLE(CreateCustomOpDomain);
  EXPECT_IN_TABLE(CustomOpDomain_Add);
  EXPECT_IN_TABLE(AddCustomOpDomain);
  EXPECT_IN_TABLE(AddSessionConfigEntry);
  EXPECT_IN_TABLE(HasSessionConfigEntry);
  EXPECT_IN_TABLE(KernelInfoGetAttribute_float);
  EXPECT_IN_TABLE(KernelInfoGetAttribute_int64);
  EXPECT_IN_TABLE(KernelInfo_GetNodeName);
  EXPECT_IN_TABLE(KernelInfo_GetInputCount);
  EXPECT_IN_TABLE(KernelInfo_GetOutputCount);
  EXPECT_IN_TABLE(KernelInfoGetConstantInput_tensor);
  EXPECT_IN_TABLE(KernelContext_GetInput);
  EXPECT_IN_TABLE(KernelContext_GetOutput);
  EXPECT_IN_TABLE(KernelContext_GetGPUComputeStream);
  EXPECT_IN_TABLE(KernelContext_GetAllocator);
  EXPECT_IN_TABLE(KernelContext_ParallelFor);
  EXPECT_IN_TABLE(KernelContext_GetScratchBuffer);
  EXPECT_IN_TABLE(ReleaseAllocator);
  EXPECT_IN_TABLE(GetTensorTypeAndShape);
  EXPECT_IN_TABLE(GetTensorMutableData);
  EXPECT_IN_TABLE(GetTensorMemoryInfo);
  EXPECT_IN_TABLE(CreateTensorTypeAndShapeInfo);
  EXPECT_IN_TABLE(SetTensorElementType);
  EXPECT_IN_TABLE(SetDimensions);
  EXPECT_IN_TABLE(GetTensorElementType);
  EXPECT_IN_TABLE(GetDimensionsCount);
  EXPECT_IN_TABLE(GetDimensions);
  EXPECT_IN_TABLE(GetSymbolicDimensions);
  EXPECT_IN_TABLE(SetSymbolicDimensions);
  EXPECT_IN_TABLE(ReleaseTensorTypeAndShapeInfo);
  EXPECT_IN_TABLE(ShapeInferContext_GetInputCount);
  EXPECT_IN_TABLE(ShapeInferContext_GetInputTypeShape);
  EXPECT_IN_TABLE(ShapeInferContext_SetOutputTypeShape);
  EXPECT_IN_TABLE(ShapeInferContext_GetAttribute);
  EXPECT_IN_TABLE(ReadOpAttr);
}

#define EXPECT_SAME_PLACE(ours, theirs, member) EXPECT_EQ(offsetof(ours, member), offsetof(theirs, member)) << #member

TEST(OnnxRuntimeAbi, StructuresAreLaidOutAsInTheHeader) {
  EXPECT_EQ(sizeof(CustomOp), sizeof(OrtCustomOp));
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, CreateKernel);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetName);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetExecutionProviderType);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetInputType);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetInputTypeCount);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetOutputType);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetOutputTypeCount);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, KernelCompute);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, KernelDestroy);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetInputCharacteristic);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetOutputCharacteristic);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetInputMemoryType);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetVariadicInputMinArity);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetVariadicInputHomogeneity);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetVariadicOutputMinArity);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetVariadicOutputHomogeneity);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, CreateKernelV2);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, KernelComputeV2);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, InferOutputShapeFn);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetStartVersion);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetEndVersion);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetMayInplace);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, ReleaseMayInplace);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, GetAliasMap);
  EXPECT_SAME_PLACE(CustomOp, OrtCustomOp, ReleaseAliasMap);
  EXPECT_SAME_PLACE(Allocator, OrtAllocator, Alloc);
  EXPECT_SAME_PLACE(Allocator, OrtAllocator, Free);
  EXPECT_SAME_PLACE(ApiBase, OrtApiBase, GetApi);
  EXPECT_SAME_PLACE(ApiBase, OrtApiBase, GetVersionString);
}

TEST(OnnxRuntimeAbi, NumbersAreThoseOfTheHeader) {
  EXPECT_EQ(static_cast<int>(ErrorCode::kFail), ORT_FAIL);
  EXPECT_EQ(static_cast<int>(ErrorCode::kInvalidArgument), ORT_INVALID_ARGUMENT);
  EXPECT_EQ(static_cast<int>(ErrorCode::kNotImplemented), ORT_NOT_IMPLEMENTED);
  EXPECT_EQ(static_cast<int>(ElementType::kUndefined), ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
  EXPECT_EQ(static_cast<int>(ElementType::kFloat), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  EXPECT_EQ(static_cast<int>(ElementType::kUint8), ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
  EXPECT_EQ(static_cast<int>(ElementType::kInt8), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8);
  EXPECT_EQ(static_cast<int>(ElementType::kInt32), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
  EXPECT_EQ(static_cast<int>(ElementType::kInt64), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  EXPECT_EQ(static_cast<int>(ElementType::kFloat16), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
  EXPECT_EQ(static_cast<int>(ElementType::kBFloat16), ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
  EXPECT_EQ(static_cast<int>(ElementType::kInt4), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT4);
  EXPECT_EQ(static_cast<int>(Characteristic::kRequired), INPUT_OUTPUT_REQUIRED);
  EXPECT_EQ(static_cast<int>(Characteristic::kOptional), INPUT_OUTPUT_OPTIONAL);
  EXPECT_EQ(static_cast<int>(AttributeType::kInt), ORT_OP_ATTR_INT);
  EXPECT_EQ(static_cast<int>(MemoryType::kDefault), OrtMemTypeDefault);
}

}  // namespace
}  // namespace abi
}  // namespace ort
}  // namespace awq2trt
