// Memory where a model runs, and the stream of work on it. In: sizes. Out: addresses, copies. A GPU's is
// ort/cuda_memory.h; tests use the host's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace awq2trt {

struct MemoryInfo {
  uint64_t free_bytes, total_bytes;
};

class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;

  virtual const char* runtime_name() const = 0;  // as ONNX Runtime names the device
  virtual int32_t index() const = 0;
  virtual const std::string& title() const = 0;  // for people
  virtual void* stream() const = 0;              // that copies are in the order of

  virtual MemoryInfo info() = 0;  // from any thread

  // What follows is for threads that have called this once.
  virtual void use_on_this_thread() = 0;

  virtual void* allocate(size_t bytes) = 0;  // filled with zeros
  virtual void free(void* memory) noexcept = 0;
  // Of the host, which the device reads and writes without a copy in between.
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void free_host(void* memory) noexcept = 0;

  // Begin a copy; the host's memory is of allocate_host, and stays as it is until synchronize().
  virtual void write(void* to, const void* from_host, size_t bytes) = 0;
  virtual void read(void* to_host, const void* from, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void synchronize() = 0;  // waits for all that has begun
};

}  // namespace awq2trt
