// The functions that TensorRT looks up when it loads the library: IPluginRegistry::loadLibrary, trtexec
// --staticPlugins, or an engine that carries the library inside. Only versioned plugin interfaces cross this border, so
// one library serves every TensorRT from 10.3 on and TensorRT-RTX; registering through the registry's own vtable would
// not.
#include <NvInferRuntime.h>

#include "trt/creators.h"
#include "trt/logging.h"

#define AWQ2TRT_EXPORT extern "C" __attribute__((visibility("default")))

AWQ2TRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      awq2trt::cached_attention_creator(), awq2trt::fused_linear_creator(),    awq2trt::gated_activation_creator(),
      awq2trt::residual_norm_creator(),    awq2trt::w4a16_embedding_creator(), awq2trt::w4a16_linear_creator(),
      awq2trt::w8a16_embedding_creator(),  awq2trt::w8a16_linear_creator()};
  count = sizeof(creators) / sizeof(creators[0]);
  return creators;
}

AWQ2TRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { awq2trt::set_logger_finder(finder); }
