// Sends messages of the plugins to the logger of the TensorRT that loaded the library. Never throws, never allocates.
#pragma once

#include <NvInferRuntime.h>

namespace awq2trt {

// TensorRT provides this when it loads the library (setLoggerFinder); until then errors and warnings go to stderr.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// printf-style; one line, cut at 512 bytes.
void log(nvinfer1::ILogger::Severity severity, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

}  // namespace awq2trt
