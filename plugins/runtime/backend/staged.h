// Memory that the host fills or reads, and that a graph reads or fills: the same, or with a device another one, between
// which there are copies.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>

#include "backend/buffer.h"

namespace awq2trt {

class Staged {
 public:
  // `device`: null for none.
  Staged(DeviceMemory* device, size_t bytes) : device_(device), bytes_(bytes) {
    if (device == nullptr) {
      plain_ = std::make_unique<char[]>(bytes);
      return;
    }
    staged_.emplace(device, Buffer::Kind::kHost, bytes);
    placed_.emplace(device, Buffer::Kind::kDevice, bytes);
  }

  size_t bytes() const { return bytes_; }
  void* host() const { return device_ == nullptr ? plain_.get() : staged_->get(); }
  void* bound() const { return device_ == nullptr ? plain_.get() : placed_->get(); }
  // Begins a copy of the first bytes, from the host or to it; the latter waits until it is done.
  void write(size_t bytes) const {
    if (device_ != nullptr) device_->write(bound(), host(), bytes);
  }
  void read(size_t bytes) const {
    if (device_ == nullptr) return;
    device_->read(host(), bound(), bytes);
    device_->synchronize();
  }

 private:
  DeviceMemory* device_;
  size_t bytes_;
  std::unique_ptr<char[]> plain_;  // without a device
  std::optional<Buffer> staged_, placed_;
};

}  // namespace awq2trt
