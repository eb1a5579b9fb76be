// The creators of all plugins, one function each; TensorRT looks them up through library.cpp.
#pragma once

#include <NvInferRuntime.h>

namespace awq2trt {

nvinfer1::IPluginCreatorInterface* cached_attention_creator();
nvinfer1::IPluginCreatorInterface* fused_linear_creator();
nvinfer1::IPluginCreatorInterface* gated_activation_creator();
nvinfer1::IPluginCreatorInterface* residual_norm_creator();
nvinfer1::IPluginCreatorInterface* w4a16_embedding_creator();
nvinfer1::IPluginCreatorInterface* w4a16_linear_creator();
nvinfer1::IPluginCreatorInterface* w8a16_embedding_creator();
nvinfer1::IPluginCreatorInterface* w8a16_linear_creator();

}  // namespace awq2trt
