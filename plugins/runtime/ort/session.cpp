// See session.h.
#include "ort/session.h"

namespace awq2trt {
namespace ort {
namespace {

void add_cuda(const Library& library, abi::SessionOptions* options, const CudaExecution& cuda,
              Owned<abi::CudaProviderOptions> provider) {
  library.call(ErrorCode::kNoRuntime, abi::kCreateCUDAProviderOptions, provider.out());
  const std::string device = std::to_string(cuda.device);
  const char* const keys[] = {"device_id", "enable_cuda_graph", "arena_extend_strategy"};
  // By default, the arena doubles at every step.
  const char* const values[] = {device.c_str(), cuda.graph ? "1" : "0", "kSameAsRequested"};
  library.call(ErrorCode::kNoRuntime, abi::kUpdateCUDAProviderOptions, provider.get(), keys, values, std::size(keys));
  library.call(ErrorCode::kNoRuntime, abi::kUpdateCUDAProviderOptionsWithValue, provider.get(), "user_compute_stream",
               cuda.stream);
  library.call(ErrorCode::kNoRuntime, abi::kSessionOptionsAppendExecutionProvider_CUDA_V2, options, provider.get());
}

void set(const Library& library, abi::SessionOptions* options, const char* key, const char* value) {
  library.call(ErrorCode::kRefused, abi::kAddSessionConfigEntry, options, key, value);
}

}  // namespace

std::shared_ptr<const Session> Session::open(const std::shared_ptr<const Library>& library, const std::string& model,
                                             const Execution& execution) {
  std::shared_ptr<Session> session(new Session(library));
  Owned<abi::SessionOptions> options(library, abi::kReleaseSessionOptions);
  library->call(ErrorCode::kRefused, abi::kCreateSessionOptions, options.out());
  if (execution.threads > 0) {
    library->call(ErrorCode::kRefused, abi::kSetIntraOpNumThreads, options.get(), execution.threads);
  }
  // Threads that spin while waiting starve each other once they share cores; awq2trt/runtime/ort/session.py has
  // figures.
  set(*library, options.get(), "session.intra_op.allow_spinning", "0");
  if (execution.cuda != nullptr) {
    // Weights get their own memory, not a part of an arena that grows by blocks.
    set(*library, options.get(), "session.use_device_allocator_for_initializers", "1");
    add_cuda(*library, options.get(), *execution.cuda,
             Owned<abi::CudaProviderOptions>(library, abi::kReleaseCUDAProviderOptions));
  }
  if (!execution.operators.empty()) {
    library->call(ErrorCode::kOperatorsVersion, abi::kRegisterCustomOpsLibrary_V2, options.get(),
                  execution.operators.c_str());
  }
  session->add_weights(options.get(), execution);
  session->session_ = Owned<abi::Session>(library, abi::kReleaseSession);
  library->call(ErrorCode::kRefused, abi::kCreateSession, library->env(), model.c_str(), options.get(),
                session->session_.out());
  return session;
}

void Session::add_weights(abi::SessionOptions* options, const Execution& execution) {
  Owned<abi::MemoryInfo> memory(library_, abi::kReleaseMemoryInfo);
  library_->call(ErrorCode::kRefused, abi::kCreateMemoryInfo, execution.place.device, abi::AllocatorType::kDevice,
                 execution.place.index, abi::MemoryType::kDefault, memory.out());
  for (const DeviceWeight& weight : execution.weights) {
    weights_.emplace_back(library_, abi::kReleaseValue);
    library_->call(ErrorCode::kRefused, abi::kCreateTensorWithDataAsOrtValue, memory.get(), weight.data, weight.bytes,
                   weight.shape.data(), weight.shape.size(), weight.type, weights_.back().out());
    library_->call(ErrorCode::kRefused, abi::kAddInitializer, options, weight.name.c_str(), weights_.back().get());
  }
}

Owned<abi::RunOptions> Session::run_options(const std::vector<std::pair<const char*, std::string>>& settings) const {
  Owned<abi::RunOptions> options(library_, abi::kReleaseRunOptions);
  library_->call(ErrorCode::kRunFailed, abi::kCreateRunOptions, options.out());
  for (const auto& [key, value] : settings) {
    library_->call(ErrorCode::kRunFailed, abi::kAddRunConfigEntry, options.get(), key, value.c_str());
  }
  return options;
}

Binding::Binding(std::shared_ptr<const Session> session, const Place& place)
    : session_(std::move(session)), place_(place), binding_(session_->library(), abi::kReleaseIoBinding) {
  session_->library()->call(ErrorCode::kRunFailed, abi::kCreateIoBinding, session_->get(), binding_.out());
}

Owned<abi::Value> Binding::make_value(void* data, abi::ElementType type, const std::vector<int64_t>& shape,
                                      const Place& place) const {
  Owned<abi::MemoryInfo> memory(session_->library(), abi::kReleaseMemoryInfo);
  session_->library()->call(ErrorCode::kRunFailed, abi::kCreateMemoryInfo, place.device, abi::AllocatorType::kDevice,
                            place.index, abi::MemoryType::kDefault, memory.out());
  size_t bytes = type == abi::ElementType::kInt64   ? sizeof(int64_t)
                 : type == abi::ElementType::kFloat ? sizeof(float)
                                                    : sizeof(uint16_t);
  for (const int64_t size : shape) bytes *= static_cast<size_t>(size);
  Owned<abi::Value> value(session_->library(), abi::kReleaseValue);
  session_->library()->call(ErrorCode::kRunFailed, abi::kCreateTensorWithDataAsOrtValue, memory.get(), data, bytes,
                            shape.data(), shape.size(), type, value.out());
  return value;
}

void Binding::bind_input(const std::string& name, void* data, abi::ElementType type,
                         const std::vector<int64_t>& shape) {
  bind_input(name, data, type, shape, place_);
}

void Binding::bind_input(const std::string& name, void* data, abi::ElementType type, const std::vector<int64_t>& shape,
                         const Place& place) {
  const Owned<abi::Value> value = make_value(data, type, shape, place);
  session_->library()->call(ErrorCode::kRunFailed, abi::kBindInput, binding_.get(), name.c_str(), value.get());
}

void Binding::bind_output(const std::string& name, void* data, abi::ElementType type,
                          const std::vector<int64_t>& shape) {
  const Owned<abi::Value> value = make_value(data, type, shape, place_);
  session_->library()->call(ErrorCode::kRunFailed, abi::kBindOutput, binding_.get(), name.c_str(), value.get());
}

void Binding::bind_cache(const CachePair& pair, void* data, abi::ElementType type, const std::vector<int64_t>& shape) {
  bind_input(pair.past, data, type, shape);
  bind_output(pair.present, data, type, shape);
}

void Binding::run(const abi::RunOptions* options) const {
  session_->library()->call(ErrorCode::kRunFailed, abi::kRunWithBinding, session_->get(), options, binding_.get());
}

abi::ElementType element_type(Number number) {
  switch (number) {
    case Number::kFloat32:
      return abi::ElementType::kFloat;
    case Number::kFloat16:
      return abi::ElementType::kFloat16;
    case Number::kBFloat16:
      return abi::ElementType::kBFloat16;
    case Number::kInt8:
      return abi::ElementType::kInt8;
    case Number::kInt64:
      return abi::ElementType::kInt64;
  }
  return abi::ElementType::kUndefined;
}

}  // namespace ort
}  // namespace awq2trt
