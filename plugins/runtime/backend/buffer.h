// Memory of a device, or host memory for it, that is freed with its owner.
#pragma once

#include <cstddef>

#include "backend/device_memory.h"

namespace awq2trt {

class Buffer {
 public:
  enum class Kind { kDevice, kHost };

  Buffer(DeviceMemory* memory, Kind kind, size_t bytes)
      : memory_(memory),
        kind_(kind),
        address_(kind == Kind::kDevice ? memory->allocate(bytes) : memory->allocate_host(bytes)) {}
  Buffer(Buffer&& other) noexcept : memory_(other.memory_), kind_(other.kind_), address_(other.address_) {
    other.address_ = nullptr;
  }
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() {
    if (address_ == nullptr) return;
    kind_ == Kind::kDevice ? memory_->free(address_) : memory_->free_host(address_);
  }

  void* get() const { return address_; }

 private:
  DeviceMemory* memory_;
  Kind kind_;
  void* address_;
};

}  // namespace awq2trt
