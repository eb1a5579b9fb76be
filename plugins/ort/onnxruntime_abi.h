// The part of ONNX Runtime's C interface that our operators use, declared here, so that a build needs none of its
// headers: no package on PyPI has them, and the smallest package elsewhere is 150 MB. The interface is a table of
// functions to which every version of ONNX Runtime only appends (onnxruntime_c_api.h promises it, and static_asserts in
// its sources enforce it), so a function's place in the table identifies it. tests/plugins/ort/onnxruntime_abi_test.cpp
// compares each line with onnxruntime_c_api.h wherever that is installed.
//
// Names are those of onnxruntime_c_api.h without their prefix Ort, which documents them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace awq2trt {
namespace ort {
namespace abi {

// The version of the table that we ask for, that of ONNX Runtime 1.27: the first that runs all of our exported graphs.
// Every function below is older.
constexpr uint32_t kApiVersion = 27;
constexpr char kLeastRuntime[] = "1.27";

// Defined only inside ONNX Runtime; we hold pointers to them.
struct Api;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct OpAttr;
struct SessionOptions;
struct ShapeInferContext;
struct Status;
struct TensorTypeAndShapeInfo;
struct Value;

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9 };

enum class ElementType : int {
  kUndefined = 0,  // of an operator's input: any
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBFloat16 = 16,
  kInt4 = 22,
};

enum class Characteristic : int { kRequired = 0, kOptional = 1 };

enum class AttributeType : int { kInt = 1 };

enum class MemoryType : int { kDefault = 0 };  // where the provider computes

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // nullptr if the runtime is older than the version
  const char* (*GetVersionString)();
};

// Its first members; the later ones only matter to implementers of an allocator.
struct Allocator {
  uint32_t version;
  void* (*Alloc)(Allocator* allocator, size_t bytes);
  void (*Free)(Allocator* allocator, void* memory);
};

// One implementation of an operator, for one provider and one set of types.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, KernelContext*);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

// A function of the table: its place, and its type.
template <typename Signature>
struct Slot {
  size_t index;
};

constexpr Slot<Status*(ErrorCode, const char* message)> kCreateStatus{0};
constexpr Slot<ErrorCode(const Status*)> kGetErrorCode{1};
constexpr Slot<const char*(const Status*)> kGetErrorMessage{2};
constexpr Slot<void(Status*)> kReleaseStatus{93};

constexpr Slot<Status*(const char* domain, CustomOpDomain**)> kCreateCustomOpDomain{26};
constexpr Slot<Status*(CustomOpDomain*, const CustomOp*)> kCustomOpDomain_Add{27};
constexpr Slot<Status*(SessionOptions*, CustomOpDomain*)> kAddCustomOpDomain{28};
constexpr Slot<Status*(SessionOptions*, const char* key, const char* value)> kAddSessionConfigEntry{130};
constexpr Slot<Status*(const SessionOptions*, const char* key, int* has)> kHasSessionConfigEntry{237};

constexpr Slot<Status*(const KernelInfo*, const char* name, float*)> kKernelInfoGetAttribute_float{85};
constexpr Slot<Status*(const KernelInfo*, const char* name, int64_t*)> kKernelInfoGetAttribute_int64{86};
constexpr Slot<Status*(const KernelInfo*, char* name, size_t* bytes)> kKernelInfo_GetNodeName{244};
constexpr Slot<Status*(const KernelInfo*, size_t*)> kKernelInfo_GetInputCount{230};
constexpr Slot<Status*(const KernelInfo*, size_t*)> kKernelInfo_GetOutputCount{231};
constexpr Slot<Status*(const KernelInfo*, size_t input, int* is_constant, const Value**)>
    kKernelInfoGetConstantInput_tensor{249};

constexpr Slot<Status*(const KernelContext*, size_t, const Value**)> kKernelContext_GetInput{90};
constexpr Slot<Status*(KernelContext*, size_t, const int64_t* sizes, size_t rank, Value**)> kKernelContext_GetOutput{
    91};
constexpr Slot<Status*(const KernelContext*, void** stream)> kKernelContext_GetGPUComputeStream{193};
constexpr Slot<Status*(const KernelContext*, const MemoryInfo*, Allocator**)> kKernelContext_GetAllocator{253};
constexpr Slot<Status*(const KernelContext*, void (*body)(void* data, size_t index), size_t total, size_t batches,
                       void* data)>
    kKernelContext_ParallelFor{274};
constexpr Slot<Status*(const KernelContext*, const MemoryInfo*, size_t bytes, void**)> kKernelContext_GetScratchBuffer{
    277};
constexpr Slot<void(Allocator*)> kReleaseAllocator{132};

constexpr Slot<Status*(const Value*, TensorTypeAndShapeInfo**)> kGetTensorTypeAndShape{65};
constexpr Slot<Status*(Value*, void**)> kGetTensorMutableData{51};
constexpr Slot<Status*(const Value*, const MemoryInfo**)> kGetTensorMemoryInfo{194};

constexpr Slot<Status*(TensorTypeAndShapeInfo**)> kCreateTensorTypeAndShapeInfo{57};
constexpr Slot<Status*(TensorTypeAndShapeInfo*, ElementType)> kSetTensorElementType{58};
constexpr Slot<Status*(TensorTypeAndShapeInfo*, const int64_t* sizes, size_t rank)> kSetDimensions{59};
constexpr Slot<Status*(const TensorTypeAndShapeInfo*, ElementType*)> kGetTensorElementType{60};
constexpr Slot<Status*(const TensorTypeAndShapeInfo*, size_t* rank)> kGetDimensionsCount{61};
constexpr Slot<Status*(const TensorTypeAndShapeInfo*, int64_t* sizes, size_t rank)> kGetDimensions{62};
constexpr Slot<Status*(const TensorTypeAndShapeInfo*, const char** names, size_t rank)> kGetSymbolicDimensions{63};
constexpr Slot<Status*(TensorTypeAndShapeInfo*, const char** names, size_t rank)> kSetSymbolicDimensions{271};
constexpr Slot<void(TensorTypeAndShapeInfo*)> kReleaseTensorTypeAndShapeInfo{99};

constexpr Slot<Status*(const ShapeInferContext*, size_t*)> kShapeInferContext_GetInputCount{267};
// The context owns the information: nobody releases it.
constexpr Slot<Status*(const ShapeInferContext*, size_t, TensorTypeAndShapeInfo**)>
    kShapeInferContext_GetInputTypeShape{268};
constexpr Slot<Status*(const ShapeInferContext*, size_t, const TensorTypeAndShapeInfo*)>
    kShapeInferContext_SetOutputTypeShape{270};

constexpr Slot<Status*(const ShapeInferContext*, const char* name, const OpAttr**)> kShapeInferContext_GetAttribute{
    269};
constexpr Slot<Status*(const OpAttr*, AttributeType, void* data, size_t bytes, size_t* needed)> kReadOpAttr{272};

// The function at `slot` of the table.
template <typename Result, typename... Parameters>
auto function_at(const Api* api, Slot<Result(Parameters...)> slot) -> Result (*)(Parameters...) {
  using AnyFunction = void (*)();
  return reinterpret_cast<Result (*)(Parameters...)>(reinterpret_cast<const AnyFunction*>(api)[slot.index]);
}

}  // namespace abi
}  // namespace ort
}  // namespace awq2trt
