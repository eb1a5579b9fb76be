// A model in ONNX Runtime. In: its file, and how it is executed. Out: a session, bindings of memory to its inputs and
// outputs, and calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/contract.h"
#include "ort/device_weights.h"
#include "ort/library.h"

namespace awq2trt {
namespace ort {

struct CudaExecution {
  int32_t device;
  bool graph;    // capture calls in CUDA graphs, by the run option gpu_graph_id
  void* stream;  // to work on
};

// Where bound memory is.
struct Place {
  const char* device;  // as ONNX Runtime names it
  int32_t index;
};

constexpr Place kHostPlace{"Cpu", 0};

struct Execution {
  int32_t threads = 0;                  // of the CPU; 0 for ONNX Runtime's own choice
  const CudaExecution* cuda = nullptr;  // null for the CPU
  std::string operators;                // library of custom operators; empty for none
  std::vector<DeviceWeight> weights;    // that lie at `place` already, and stay there as long as the session
  Place place = kHostPlace;
};

class Session;

// Memory bound to the inputs and outputs of a session. The caller keeps bound memory alive until it binds other memory.
class Binding {
 public:
  Binding(std::shared_ptr<const Session> session, const Place& place);

  void bind_input(const std::string& name, void* data, abi::ElementType type, const std::vector<int64_t>& shape);
  // The same of memory in another place, from which ONNX Runtime copies in each call.
  void bind_input(const std::string& name, void* data, abi::ElementType type, const std::vector<int64_t>& shape,
                  const Place& place);
  void bind_output(const std::string& name, void* data, abi::ElementType type, const std::vector<int64_t>& shape);
  // One memory for the past and the present cache.
  void bind_cache(const CachePair& pair, void* data, abi::ElementType type, const std::vector<int64_t>& shape);

  void run(const abi::RunOptions* options) const;

 private:
  Owned<abi::Value> make_value(void* data, abi::ElementType type, const std::vector<int64_t>& shape,
                               const Place& place) const;

  std::shared_ptr<const Session> session_;
  Place place_;
  Owned<abi::IoBinding> binding_;
};

class Session {
 public:
  // Throws Error: kRefused if ONNX Runtime does not take the model, kNoRuntime if it lacks the provider.
  static std::shared_ptr<const Session> open(const std::shared_ptr<const Library>& library, const std::string& model,
                                             const Execution& execution);

  const std::shared_ptr<const Library>& library() const { return library_; }
  abi::Session* get() const { return session_.get(); }

  // Options of a call, with these settings.
  Owned<abi::RunOptions> run_options(const std::vector<std::pair<const char*, std::string>>& settings) const;

 private:
  Session(std::shared_ptr<const Library> library) : library_(std::move(library)) {}
  void add_weights(abi::SessionOptions* options, const Execution& execution);

  std::shared_ptr<const Library> library_;
  std::vector<Owned<abi::Value>> weights_;  // outlive the session
  Owned<abi::Session> session_;
};

abi::ElementType element_type(Number number);

}  // namespace ort
}  // namespace awq2trt
