// Finds the logger of the TensorRT that loaded the library, independently of the headers this was compiled with; see
// logging.h.
//
// ILoggerFinder and ILogger came without a version until TensorRT 10, and are versioned interfaces since TensorRT 11
// and in TensorRT-RTX (checked in 1.7.1): four virtual functions of IVersionedInterface come before their own. An
// object's RTTI tells which of the two it is. A version number does not suffice: a process may hold several TensorRTs,
// and their libraries are not loaded in a way that lets us look up their symbols.
#include "trt/logging.h"

#include <cxxabi.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <typeinfo>

namespace awq2trt {
namespace {

using Severity = nvinfer1::ILogger::Severity;

std::atomic<void*> g_logger_finder{nullptr};

// Virtual functions of IVersionedInterface: getAPILanguage, getInterfaceInfo, and a destructor's two.
constexpr int kVersionedFunctions = 4;

// The virtual function of an object at a place of its table (Itanium C++ ABI, 2.5). Not called through a class declared
// here, since the compiler could conclude that nothing derives from such a class.
template <typename Function>
Function function_at(void* object, int place) {
  return reinterpret_cast<Function>((*static_cast<void***>(object))[place]);
}

// Whether the class of an object with virtual functions derives from IVersionedInterface; false if it was compiled
// without RTTI.
bool is_versioned(void* object) {
  // The class's type_info is the word before the virtual functions.
  const auto* const type = (*static_cast<const std::type_info***>(object))[-1];
  const auto& versioned = static_cast<const abi::__class_type_info&>(typeid(nvinfer1::IVersionedInterface));
  void* base = object;
  return type != nullptr && type->__do_upcast(&versioned, &base) && base == object;
}

// False if there is no logger yet.
bool log_to_tensorrt(Severity severity, const char* message) {
  void* const finder = g_logger_finder;
  if (finder == nullptr) return false;
  const int place = is_versioned(finder) ? kVersionedFunctions : 0;
  void* const logger = function_at<void* (*)(void* finder)>(finder, place)(finder);
  if (logger == nullptr) return false;
  // A versioned finder finds versioned loggers: both changed at once.
  function_at<void (*)(void* logger, Severity, const char*)>(logger, place)(logger, severity, message);
  return true;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { g_logger_finder = finder; }

void log(Severity severity, const char* format, ...) noexcept {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  if (!log_to_tensorrt(severity, message) && severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
}

}  // namespace awq2trt
