// Memory where a model runs, and its stream of work. In: sizes. Out: addresses, copies. ort/cuda_memory.h has that of a
// GPU; tests use the host's.
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
  virtual void* stream() const = 0;              // the stream that orders copies

  virtual MemoryInfo info() = 0;  // from any thread

  // Each thread calls this once before it uses what follows.
  virtual void use_on_this_thread() = 0;

  virtual void* allocate(size_t bytes) = 0;  // filled with zeros
  virtual void free(void* memory) noexcept = 0;
  // Host memory that the device reads and writes without a copy in between.
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void free_host(void* memory) noexcept = 0;

  // Begin a copy; the host's memory comes from allocate_host and must not change until synchronize().
  virtual void write(void* to, const void* from_host, size_t bytes) = 0;
  virtual void read(void* to_host, const void* from, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void synchronize() = 0;  // waits for everything that has begun
};

}  // namespace awq2trt
