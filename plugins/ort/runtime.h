// The ONNX Runtime that called us, and errors on their way back to it.
//
// In:  its table of functions (onnxruntime_abi.h).
// Out: calls that throw where it reports an error, and `guarded`, which turns every exception inside an operator into a
//      status: no exception reaches ONNX Runtime.
#pragma once

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "ort/onnxruntime_abi.h"

namespace awq2trt {
namespace ort {

// An error, as a sentence for the user.
class Failure : public std::runtime_error {
 public:
  explicit Failure(const std::string& text, abi::ErrorCode code = abi::ErrorCode::kFail)
      : std::runtime_error(text), code_(code) {}
  abi::ErrorCode code() const { return code_; }

 private:
  abi::ErrorCode code_;
};

class Runtime {
 public:
  explicit Runtime(const abi::Api* api) : api_(api) {}

  // Calls a function that reports errors; throws them as Failure.
  template <typename... Parameters, typename... Arguments>
  void call(abi::Slot<abi::Status*(Parameters...)> slot, Arguments... arguments) const {
    throw_if_error(abi::function_at(api_, slot)(arguments...));
  }

  // Calls a function that cannot fail.
  template <typename... Parameters, typename... Arguments>
  void release(abi::Slot<void(Parameters...)> slot, Arguments... arguments) const {
    abi::function_at(api_, slot)(arguments...);
  }

  // Runs `body` and returns nullptr, or on an error a status that the runtime then owns.
  template <typename Body>
  abi::Status* guarded(Body&& body) const noexcept {
    try {
      std::forward<Body>(body)();
      return nullptr;
    } catch (const Failure& failure) {
      return status(failure.code(), failure.what());
    } catch (const std::exception& error) {
      return status(abi::ErrorCode::kFail, error.what());
    } catch (...) {
      return status(abi::ErrorCode::kFail, "unknown error");
    }
  }

 private:
  abi::Status* status(abi::ErrorCode code, const char* text) const noexcept {
    return abi::function_at(api_, abi::kCreateStatus)(code, text);
  }

  // Takes over `status`.
  void throw_if_error(abi::Status* status) const;

  const abi::Api* api_;
};

}  // namespace ort
}  // namespace awq2trt
