// The part of TensorRT's C++ classes that runs an engine, declared here, so that a build needs none of its headers and
// one library serves TensorRT 10, 11 and TensorRT-RTX. A virtual function is known by its place in its class's table
// (Itanium C++ ABI, 2.5). From 10.0 to 10.16 the classes only grew at their ends; from 11.0 on they are different.
// tests/plugins/runtime/trt/abi_test.cpp compares each place with the headers of 10.14; those of 10.3 and 11.1 were
// compared in the same way.
//
// Names are those of NvInferRuntime.h, which documents them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace awq2trt {
namespace trt {
namespace abi {

// An object of TensorRT: its own table, whose second entry deletes it, followed by a pointer to the object that does
// the work.
struct Object {
  const void* const* table;
  Object* implementation;
};

constexpr size_t kDelete = 1;

// Places in the tables of the implementations.
struct Places {
  size_t deserialize_cuda_engine;   // of IRuntime: (const void* blob, size_t bytes) -> ICudaEngine*
  size_t create_execution_context;  // of ICudaEngine: (int32_t strategy) -> IExecutionContext*
  size_t set_optimization_profile;  // of IExecutionContext: Async, (int32_t index, stream) -> bool
  size_t set_input_shape;           // (const char* name, const Dims&) -> bool
  size_t set_tensor_address;        // (const char* name, void*) -> bool
  size_t enqueue;                   // V3, (stream) -> bool
};

constexpr Places kPlaces10{3, 5, 17, 21, 24, 37};
constexpr Places kPlaces11{3, 5, 16, 20, 23, 36};

constexpr int32_t kStaticAllocation = 0;  // ExecutionContextAllocationStrategy

struct Dims {
  static constexpr int32_t kMost = 8;
  int32_t count;
  int64_t sizes[kMost];
};

enum class Severity : int32_t { kInternalError = 0, kError = 1 };

// ILogger of TensorRT 10.
class Logger10 {
 public:
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~Logger10() = default;
};

struct InterfaceInfo {
  const char* kind;
  int32_t major, minor;
};

// ILogger from TensorRT 11 on, with its base IVersionedInterface.
class Logger11 {
 public:
  virtual int32_t language() const noexcept { return 0; }  // APILanguage::kCPP
  virtual InterfaceInfo info() const noexcept { return {"ILogger", 1, 0}; }
  virtual ~Logger11() = default;
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

// Calls the virtual function at `place` of the object that does the work.
template <typename Result, typename... Arguments>
Result call(const Object* object, size_t place, Arguments... arguments) {
  using Function = Result (*)(const Object*, Arguments...);
  const Object* const implementation = object->implementation;
  return reinterpret_cast<Function>(const_cast<void*>(implementation->table[place]))(implementation, arguments...);
}

inline void destroy(Object* object) {
  using Function = void (*)(Object*);
  reinterpret_cast<Function>(const_cast<void*>(object->table[kDelete]))(object);
}

}  // namespace abi
}  // namespace trt
}  // namespace awq2trt
