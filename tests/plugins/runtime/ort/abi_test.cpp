// Compares plugins/runtime/ort/abi.h with ONNX Runtime's own header: every place and number that we declare. Built
// where that header is installed (-DOnnxRuntime_ROOT, or Debian's libonnxruntime-dev).
#include "ort/abi.h"

#include <gtest/gtest.h>
#include <onnxruntime_c_api.h>

#include <cstddef>

namespace awq2trt {
namespace ort {
namespace abi {
namespace {

// The number of a function's parameters; names of types differ, and all pointers are equal for a call.
template <typename R, typename... P>
constexpr size_t arity_of(Slot<R(P...)>) {
  return sizeof...(P);
}
template <typename R, typename... P>
constexpr size_t arity_of(R (*)(P...)) {
  return sizeof...(P);
}

#define EXPECT_IN_TABLE(name)                                                     \
  EXPECT_EQ(k##name.index * sizeof(void (*)()), offsetof(OrtApi, name)) << #name; \
  static_assert(arity_of(k##name) == arity_of(decltype(OrtApi::name){}), #name)

TEST(RuntimeAbi, FunctionsAreWhereTheHeaderHasThem) {
  EXPECT_IN_TABLE(CreateEnvWithCustomLogger);
  EXPECT_IN_TABLE(ReleaseEnv);
  EXPECT_IN_TABLE(CreateSessionOptions);
  EXPECT_IN_TABLE(SetIntraOpNumThreads);
  EXPECT_IN_TABLE(RegisterCustomOpsLibrary_V2);
  EXPECT_IN_TABLE(AddInitializer);
  EXPECT_IN_TABLE(ReleaseSessionOptions);
  EXPECT_IN_TABLE(CreateCUDAProviderOptions);
  EXPECT_IN_TABLE(UpdateCUDAProviderOptions);
  EXPECT_IN_TABLE(UpdateCUDAProviderOptionsWithValue);
  EXPECT_IN_TABLE(SessionOptionsAppendExecutionProvider_CUDA_V2);
  EXPECT_IN_TABLE(ReleaseCUDAProviderOptions);
  EXPECT_IN_TABLE(GetAvailableProviders);
  EXPECT_IN_TABLE(ReleaseAvailableProviders);
  EXPECT_IN_TABLE(CreateSession);
  EXPECT_IN_TABLE(ReleaseSession);
  EXPECT_IN_TABLE(CreateRunOptions);
  EXPECT_IN_TABLE(AddRunConfigEntry);
  EXPECT_IN_TABLE(ReleaseRunOptions);
  EXPECT_IN_TABLE(CreateIoBinding);
  EXPECT_IN_TABLE(BindInput);
  EXPECT_IN_TABLE(BindOutput);
  EXPECT_IN_TABLE(RunWithBinding);
  EXPECT_IN_TABLE(ReleaseIoBinding);
  EXPECT_IN_TABLE(CreateMemoryInfo);
  EXPECT_IN_TABLE(ReleaseMemoryInfo);
  EXPECT_IN_TABLE(CreateTensorWithDataAsOrtValue);
  EXPECT_IN_TABLE(ReleaseValue);
}

TEST(RuntimeAbi, NumbersAreThoseOfTheHeader) {
  EXPECT_EQ(static_cast<int>(LoggingLevel::kError), ORT_LOGGING_LEVEL_ERROR);
  EXPECT_EQ(static_cast<int>(LoggingLevel::kFatal), ORT_LOGGING_LEVEL_FATAL);
  EXPECT_EQ(static_cast<int>(AllocatorType::kDevice), OrtDeviceAllocator);
}

}  // namespace
}  // namespace abi
}  // namespace ort
}  // namespace awq2trt
