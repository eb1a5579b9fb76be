// See engine.h.
#include "trt/engine.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "artifact/kit.h"
#include "trt/abi.h"

namespace awq2trt {
namespace trt {
namespace {

constexpr char kVariable[] = "AWQ2TRT_TENSORRT";
constexpr char kRtx[] = "tensorrt-rtx";
constexpr size_t kReleaseParts = 3;  // an engine runs in the release that built it, with any build number

// Keeps the last error that TensorRT reports and ignores its other messages.
class Messages {
 public:
  void keep(abi::Severity severity, const char* message) noexcept {
    if (severity > abi::Severity::kError) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      last_ = message;
      std::replace(last_.begin(), last_.end(), '\n', ' ');
    } catch (...) {  // no memory for the message: TensorRT must not see that
      last_.clear();
    }
  }
  std::string last() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last_.empty() ? "it does not say why" : last_;
  }

 private:
  mutable std::mutex mutex_;
  std::string last_;
};

class Listener10 : public abi::Logger10 {
 public:
  explicit Listener10(Messages* messages) : messages_(*messages) {}
  void log(abi::Severity severity, const char* message) noexcept override { messages_.keep(severity, message); }

 private:
  Messages& messages_;
};

class Listener11 : public abi::Logger11 {
 public:
  explicit Listener11(Messages* messages) : messages_(*messages) {}
  void log(abi::Severity severity, const char* message) noexcept override { messages_.keep(severity, message); }

 private:
  Messages& messages_;
};

struct Deleter {
  void operator()(abi::Object* object) const { abi::destroy(object); }
};
using Owned = std::unique_ptr<abi::Object, Deleter>;

// A file's bytes, mapped.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status{};
    const bool readable = file >= 0 && fstat(file, &status) == 0 && status.st_size > 0;
    if (readable) {
      bytes_ = static_cast<size_t>(status.st_size);
      data_ = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    }
    if (file >= 0) close(file);
    if (!readable || data_ == MAP_FAILED) {
      throw Error(ErrorCode::kNotFound, "it cannot be read", path, "check its permissions.");
    }
  }
  ~Mapping() { munmap(data_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  const void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

bool says_driver(const std::string& message) {
  constexpr const char* kSigns[] = {"cudaError 35",
                                    "CUDA driver",
                                    "no CUDA-capable device",
                                    "cudaError 100",
                                    "initialization failure with error: 35",
                                    "initialization failure with error: 100"};
  return std::any_of(std::begin(kSigns), std::end(kSigns),
                     [&](const char* sign) { return message.find(sign) != std::string::npos; });
}

class TensorRtContext : public Context {
 public:
  TensorRtContext(const abi::Places& places, const Messages& messages, Owned context)
      : places_(places), messages_(messages), context_(std::move(context)) {}

  void set_profile(int32_t profile, void* stream) {
    check(abi::call<bool>(context_.get(), places_.set_optimization_profile, profile, stream), "profile");
  }
  void set_shape(const std::string& input, const std::vector<int64_t>& shape) override {
    abi::Dims dims{static_cast<int32_t>(shape.size()), {}};
    std::copy(shape.begin(), shape.end(), dims.sizes);
    check(abi::call<bool>(context_.get(), places_.set_input_shape, input.c_str(), &dims), input);
  }
  void set_address(const std::string& tensor, void* address) override {
    check(abi::call<bool>(context_.get(), places_.set_tensor_address, tensor.c_str(), address), tensor);
  }
  void enqueue(void* stream) override { check(abi::call<bool>(context_.get(), places_.enqueue, stream), "enqueueV3"); }

 private:
  void check(bool done, const std::string& where) const {
    if (done) return;
    throw Error(ErrorCode::kRunFailed, "TensorRT fails: " + messages_.last(), where,
                "build the model again with the TensorRT that is here; if that does not help, report it.");
  }

  const abi::Places& places_;
  const Messages& messages_;
  Owned context_;
};

// What all engines of a model share.
class TensorRt {
 public:
  TensorRt(void* library, const abi::Places& places, const std::string& title)
      : places_(places), title_(title), listener10_(&messages_), listener11_(&messages_) {
    // The function does not check this version; we compare the library's own version ourselves.
    constexpr int32_t kAnyVersion = 0;
    const auto create = reinterpret_cast<abi::Object* (*)(void* logger, int32_t version)>(
        dlsym(library, "createInferRuntime_INTERNAL"));
    void* const logger = &places == &abi::kPlaces10 ? static_cast<void*>(static_cast<abi::Logger10*>(&listener10_))
                                                    : static_cast<abi::Logger11*>(&listener11_);
    const auto get_version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
    runtime_.reset(create == nullptr ? nullptr
                                     : create(logger, &places == &abi::kPlaces10 ? get_version() : kAnyVersion));
    if (runtime_ == nullptr) refuse(title_);
  }

  const abi::Places& places() const { return places_; }
  const Messages& messages() const { return messages_; }
  const std::string& title() const { return title_; }

  Owned load(const std::string& path) const {
    const Mapping file(path);
    Owned engine(abi::call<abi::Object*>(runtime_.get(), places_.deserialize_cuda_engine, file.data(), file.bytes()));
    if (engine == nullptr) refuse(path);
    return engine;
  }

  [[noreturn]] void refuse(const std::string& where) const {
    const std::string reason = messages_.last();
    if (says_driver(reason)) {
      throw Error(
          ErrorCode::kNoDriver, "TensorRT finds no GPU that it can use: " + reason, title_,
          "run this on a machine with an NVIDIA GPU and a driver for it, or build the model with --target cpu.");
    }
    throw Error(ErrorCode::kRefused, "TensorRT refuses the engine: " + reason, where,
                "build the model again for the GPU that is here: awq2trt build MODEL --target TARGET.");
  }

 private:
  const abi::Places& places_;
  std::string title_;
  Messages messages_;
  Listener10 listener10_;
  Listener11 listener11_;
  Owned runtime_;
};

class TensorRtEngine : public Engine {
 public:
  TensorRtEngine(std::shared_ptr<const TensorRt> tensorrt, const std::string& path)
      : tensorrt_(std::move(tensorrt)), path_(path), engine_(tensorrt_->load(path)) {}

  const std::string& title() const override { return tensorrt_->title(); }

  std::unique_ptr<Context> new_context(int32_t profile, void* stream) override {
    const abi::Places& places = tensorrt_->places();
    Owned context(abi::call<abi::Object*>(engine_.get(), places.create_execution_context, abi::kStaticAllocation));
    if (context == nullptr) tensorrt_->refuse(path_);
    auto made = std::make_unique<TensorRtContext>(places, tensorrt_->messages(), std::move(context));
    made->set_profile(profile, stream);
    return made;
  }

 private:
  std::shared_ptr<const TensorRt> tensorrt_;
  std::string path_;
  Owned engine_;  // it goes first
};

void* open_library(const std::string& file, const std::string& fix) {
  if (void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) return library;
  throw Error(ErrorCode::kNoRuntime, std::string("TensorRT is not installed: ") + dlerror(), file, fix);
}

std::string file_name(const EngineRecord& record, const Version& built, const LoadOptions& options) {
  if (!options.tensorrt_library.empty()) return options.tensorrt_library;
  const char* const variable = std::getenv(kVariable);
  if (variable != nullptr && *variable != '\0') return variable;
  return record.flavour == kRtx ? "libtensorrt_rtx.so." + std::to_string(built[0])
                                : "libnvinfer.so." + std::to_string(built[0]);
}

}  // namespace

LoadEngine open_tensorrt(const EngineRecord& record, const LoadOptions& options) {
  const bool rtx = record.flavour == kRtx;
  Version built = parse_version(record.tensorrt_version);
  built.resize(kReleaseParts);
  const std::string name = rtx ? "TensorRT-RTX" : "TensorRT";
  const std::string fix = "install " + name + " " + record.tensorrt_version +
                          ", and name its file in LoadOptions::tensorrt_library or in AWQ2TRT_TENSORRT.";
  const std::string file = file_name(record, built, options);
  void* const library = open_library(file, fix);
  const auto get_version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
  if (get_version == nullptr) throw Error(ErrorCode::kNoRuntime, "this is not TensorRT", file, fix);
  const Version here = tensorrt_version(get_version());
  if (here != built) {
    throw Error(ErrorCode::kEngineVersion,
                name + " here is " + to_text(here) + ", the engine was built by " + record.tensorrt_version, file, fix);
  }
  constexpr int kFirstOfOtherTables = 11;
  const bool older = !rtx && built[0] < kFirstOfOtherTables;
  const auto tensorrt =
      std::make_shared<const TensorRt>(library, older ? abi::kPlaces10 : abi::kPlaces11, name + " " + to_text(here));
  return [tensorrt](const std::string& path) { return std::make_unique<TensorRtEngine>(tensorrt, path); };
}

}  // namespace trt
}  // namespace awq2trt
