// Where messages of the plugins go; see logging.h.
#include "trt/logging.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace awq2trt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> g_logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { g_logger_finder = finder; }

void log(nvinfer1::ILogger::Severity severity, const char* format, ...) noexcept {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);

  nvinfer1::ILoggerFinder* const finder = g_logger_finder;
  nvinfer1::ILogger* const logger = finder != nullptr ? finder->findLogger() : nullptr;
  if (logger != nullptr) {
    logger->log(severity, message);
  } else if (severity <= nvinfer1::ILogger::Severity::kWARNING) {
    std::fprintf(stderr, "%s\n", message);
  }
}

}  // namespace awq2trt
