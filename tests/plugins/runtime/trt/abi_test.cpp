// Compares plugins/runtime/trt/abi.h with TensorRT's own headers: every place and size that we declare. Those headers
// are of TensorRT 10; the places of 11 are compared where its headers are installed (-DTensorRT_ROOT).
#include "trt/abi.h"

#include <NvInferRuntime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <type_traits>

namespace awq2trt {
namespace trt {
namespace abi {
namespace {

// The place of a virtual function: the value of a pointer to it (Itanium C++ ABI, 2.3), minus the one that marks it as
// virtual.
template <typename Function>
size_t place_of(Function function) {
  size_t held[2];
  static_assert(sizeof(held) == sizeof(function));
  std::memcpy(held, &function, sizeof(held));
  return (held[0] - 1) / sizeof(void*);
}

constexpr bool kIs11 = NV_TENSORRT_MAJOR >= 11;
constexpr Places kOurs = kIs11 ? kPlaces11 : kPlaces10;

namespace theirs = nvinfer1::apiv;

TEST(TensorRtAbi, FunctionsAreWhereTheHeadersHaveThem) {
  using Deserialize = nvinfer1::ICudaEngine* (theirs::VRuntime::*)(const void*, std::size_t) noexcept;
  EXPECT_EQ(place_of(static_cast<Deserialize>(&theirs::VRuntime::deserializeCudaEngine)),
            kOurs.deserialize_cuda_engine);
  EXPECT_EQ(place_of(&theirs::VCudaEngine::createExecutionContext), kOurs.create_execution_context);
  EXPECT_EQ(place_of(&theirs::VExecutionContext::setOptimizationProfileAsync), kOurs.set_optimization_profile);
  EXPECT_EQ(place_of(&theirs::VExecutionContext::setInputShape), kOurs.set_input_shape);
  EXPECT_EQ(place_of(&theirs::VExecutionContext::setTensorAddress), kOurs.set_tensor_address);
  EXPECT_EQ(place_of(&theirs::VExecutionContext::enqueueV3), kOurs.enqueue);
}

TEST(TensorRtAbi, LoggersAreLaidOutAsInTheHeaders) {
  using Ours = std::conditional_t<kIs11, Logger11, Logger10>;
  EXPECT_EQ(place_of(&nvinfer1::ILogger::log), place_of(&Ours::log));
  EXPECT_EQ(sizeof(nvinfer1::ILogger), sizeof(Ours));
  EXPECT_EQ(static_cast<int32_t>(nvinfer1::ILogger::Severity::kERROR), static_cast<int32_t>(Severity::kError));
}

TEST(TensorRtAbi, ObjectsAndShapesAreLaidOutAsInTheHeaders) {
  EXPECT_EQ(sizeof(nvinfer1::IRuntime), sizeof(Object));
  EXPECT_EQ(sizeof(nvinfer1::ICudaEngine), sizeof(Object));
  EXPECT_EQ(sizeof(nvinfer1::IExecutionContext), sizeof(Object));
  EXPECT_EQ(sizeof(nvinfer1::Dims), sizeof(Dims));
  EXPECT_EQ(offsetof(nvinfer1::Dims, d), offsetof(Dims, sizes));
  EXPECT_EQ(nvinfer1::Dims::MAX_DIMS, Dims::kMost);
  EXPECT_EQ(static_cast<int32_t>(nvinfer1::ExecutionContextAllocationStrategy::kSTATIC), kStaticAllocation);
}

}  // namespace
}  // namespace abi
}  // namespace trt
}  // namespace awq2trt
