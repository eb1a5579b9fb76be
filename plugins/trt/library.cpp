// What TensorRT looks up when it loads the library: IPluginRegistry::loadLibrary, trtexec --staticPlugins, or an engine
// that carries the library inside. Only versioned plugin interfaces cross this border, so one library serves every
// TensorRT from 10.3 on and TensorRT-RTX; registering through the registry's own vtable would not.
#include <NvInferRuntime.h>

#include "trt/logging.h"
#include "trt/w4a16_linear_plugin.h"

#define AWQ2TRT_EXPORT extern "C" __attribute__((visibility("default")))

AWQ2TRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static awq2trt::W4A16LinearCreator w4a16_linear;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&w4a16_linear};
  count = sizeof(creators) / sizeof(creators[0]);
  return creators;
}

AWQ2TRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { awq2trt::set_logger_finder(finder); }
