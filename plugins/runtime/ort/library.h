// ONNX Runtime's library, opened while the program runs; this library does not link to it. In: its path. Out: its
// functions, as calls that throw.
#pragma once

#include <memory>
#include <string>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"
#include "ort/abi.h"
#include "ort/runtime.h"

namespace awq2trt {
namespace ort {

constexpr char kLibraryVariable[] = "AWQ2TRT_ONNXRUNTIME";

class Library {
 public:
  // `path`: empty for the file that AWQ2TRT_ONNXRUNTIME names, or else the one that the loader finds. Throws Error,
  // kNoRuntime, if there is none, or if it is older than `minimum`.
  static std::shared_ptr<const Library> open(const std::string& path, const Version& minimum);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const std::string& version() const { return version_; }
  bool has_provider(const std::string& name) const;
  abi::Env* env() const { return env_; }

  // Calls a function; an error that it reports becomes an Error with this code.
  template <typename... Parameters, typename... Arguments>
  void call(ErrorCode code, abi::Slot<abi::Status*(Parameters...)> slot, Arguments... arguments) const {
    try {
      runtime_.call(slot, arguments...);
    } catch (const Failure& failure) {
      refuse(code, failure.what());
    }
  }
  template <typename... Parameters, typename... Arguments>
  void release(abi::Slot<void(Parameters...)> slot, Arguments... arguments) const {
    runtime_.release(slot, arguments...);
  }

 private:
  Library(const abi::Api* api, const std::string& version);
  [[noreturn]] void refuse(ErrorCode code, const std::string& reason) const;

  Runtime runtime_;
  std::string version_, name_;
  abi::Env* env_ = nullptr;
};

// An object of ONNX Runtime, released when this owner is destroyed.
template <typename T>
class Owned {
 public:
  Owned() = default;
  Owned(std::shared_ptr<const Library> library, abi::Slot<void(T*)> slot) : library_(std::move(library)), slot_(slot) {}
  Owned(Owned&& other) noexcept : library_(std::move(other.library_)), slot_(other.slot_), object_(other.object_) {
    other.object_ = nullptr;
  }
  Owned& operator=(Owned&& other) noexcept {
    std::swap(library_, other.library_);
    std::swap(slot_, other.slot_);
    std::swap(object_, other.object_);
    return *this;
  }
  ~Owned() {
    if (object_ != nullptr) library_->release(slot_, object_);
  }

  T* get() const { return object_; }
  T** out() { return &object_; }

 private:
  std::shared_ptr<const Library> library_;
  abi::Slot<void(T*)> slot_{0};
  T* object_ = nullptr;
};

}  // namespace ort
}  // namespace awq2trt
