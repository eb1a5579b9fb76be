// awq2trt::W4A16Linear as an IPluginV3: what TensorRT asks of the operator, answered by its rules (ops/w4a16_linear.h)
// and computed by its kernels (kernels/w4a16_linear/).
#pragma once

#include <NvInferRuntime.h>

#include "kernels/w4a16_linear/w4a16_linear.h"
#include "ops/w4a16_linear.h"

namespace awq2trt {

class W4A16LinearPlugin final : public nvinfer1::IPluginV3,
                                public nvinfer1::IPluginV3OneCore,
                                public nvinfer1::IPluginV3OneBuild,
                                public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit W4A16LinearPlugin(const w4a16_linear::Attributes& attributes) noexcept;
  // The serialized fields point into their own plugin's attributes.
  W4A16LinearPlugin(const W4A16LinearPlugin& other) noexcept : W4A16LinearPlugin(other.attributes_) {}
  W4A16LinearPlugin& operator=(const W4A16LinearPlugin&) = delete;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;

  // IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t output_count,
                             nvinfer1::DataType const* input_types, int32_t input_count) const noexcept override;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t input_count,
                          nvinfer1::DimsExprs const* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                 int32_t input_count, int32_t output_count) noexcept override;
  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
                          nvinfer1::DynamicPluginTensorDesc const* outputs,
                          int32_t output_count) const noexcept override;

  // IPluginV3OneRuntime
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
                        nvinfer1::PluginTensorDesc const* outputs, int32_t output_count) noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descriptions,
                  nvinfer1::PluginTensorDesc const* output_descriptions, void const* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

 private:
  const w4a16_linear::Attributes attributes_;  // all that a plugin is made of, and all that an engine stores of it
  nvinfer1::PluginField fields_[3];
  nvinfer1::PluginFieldCollection field_collection_;

  // Set by onShapeChange() for enqueue().
  GemmProblem problem_ = {};
  KernelConfig config_ = {};
};

class W4A16LinearCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override;
  nvinfer1::AsciiChar const* getPluginName() const noexcept override;
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept override;
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override;
};

}  // namespace awq2trt
