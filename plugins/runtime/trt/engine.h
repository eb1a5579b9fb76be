// An engine as the backend calls it (backend.h); TensorRT's is below, and tests have their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace trt {

// Calls of one optimization profile. Shapes and addresses stay until they are set again.
class Context {
 public:
  virtual ~Context() = default;
  virtual void set_shape(const std::string& input, const std::vector<int64_t>& shape) = 0;
  virtual void set_address(const std::string& tensor, void* address) = 0;
  virtual void enqueue(void* stream) = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual const std::string& title() const = 0;  // for people
  // `profile` is chosen in the order of the stream.
  virtual std::unique_ptr<Context> new_context(int32_t profile, void* stream) = 0;
};

// Loads the engine of a file.
using LoadEngine = std::function<std::unique_ptr<Engine>(const std::string& path)>;

// Those of TensorRT, opened while the program runs: LoadOptions::tensorrt_library, else AWQ2TRT_TENSORRT, else what the
// loader finds. A model's engines share one runtime. It, and what it loads, throw Error: kNoRuntime without TensorRT,
// kEngineVersion with another release than the one that built the engines, kNoDriver or kRefused with TensorRT's own
// message.
LoadEngine open_tensorrt(const EngineRecord& record, const LoadOptions& options);

}  // namespace trt
}  // namespace awq2trt
