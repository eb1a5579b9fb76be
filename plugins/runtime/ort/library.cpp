// See library.h.
#include "ort/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>

namespace awq2trt {
namespace ort {
namespace {

constexpr const char* kNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
constexpr char kInstall[] =
    "install ONNX Runtime 1.27 or later (https://github.com/microsoft/onnxruntime/releases, or `pip install "
    "onnxruntime`, which has it below onnxruntime/capi), and name its file in LoadOptions::onnxruntime_library or in "
    "AWQ2TRT_ONNXRUNTIME.";

[[noreturn]] void missing(const std::string& what, const std::string& where) {
  throw Error(ErrorCode::kNoRuntime, what, where, kInstall);
}

void* open_first(const std::string& path, std::string* name) {
  // ONNX Runtime's threads and statics do not survive being unloaded.
  constexpr int kFlags = RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE;
  const char* const variable = std::getenv(kLibraryVariable);
  *name = !path.empty() ? path : std::string(variable == nullptr ? "" : variable);
  if (!name->empty()) {
    if (void* const handle = dlopen(name->c_str(), kFlags)) return handle;
    missing(std::string("ONNX Runtime does not load: ") + dlerror(), *name);
  }
  std::string reason;
  for (const char* const candidate : kNames) {
    *name = candidate;
    if (void* const handle = dlopen(candidate, kFlags)) return handle;
    reason = dlerror();
  }
  missing("ONNX Runtime is not installed: " + reason, kNames[0]);
}

// ONNX Runtime's log adds nothing: errors are reported separately.
void ignore(void*, abi::LoggingLevel, const char*, const char*, const char*, const char*) {}

bool is_out_of_memory(const std::string& reason) {
  constexpr const char* kSigns[] = {"Failed to allocate memory", "out of memory",
                                    "CUDA failure 2:", "Available memory of", "CUBLAS_STATUS_ALLOC_FAILED"};
  return std::any_of(std::begin(kSigns), std::end(kSigns),
                     [&](const char* sign) { return reason.find(sign) != std::string::npos; });
}

}  // namespace

std::shared_ptr<const Library> Library::open(const std::string& path, const Version& minimum) {
  std::string name;
  void* const handle = open_first(path, &name);
  const auto get_base = reinterpret_cast<const abi::ApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) missing("this is not ONNX Runtime: it has no OrtGetApiBase", name);
  const std::string version = get_base()->GetVersionString();
  const Version least = std::max(minimum, parse_version(abi::kLeastRuntime));
  const abi::Api* const api = parse_version(version) < least ? nullptr : get_base()->GetApi(abi::kApiVersion);
  if (api == nullptr) missing("ONNX Runtime here is " + version + ", expected " + to_text(least) + " or later", name);
  return std::shared_ptr<const Library>(new Library(api, version));
}

Library::Library(const abi::Api* api, const std::string& version)
    : runtime_(api), version_(version), name_("ONNX Runtime " + version) {
  call(ErrorCode::kNoRuntime, abi::kCreateEnvWithCustomLogger, &ignore, nullptr, abi::LoggingLevel::kFatal, "awq2trt",
       &env_);
}

Library::~Library() { release(abi::kReleaseEnv, env_); }

bool Library::has_provider(const std::string& name) const {
  char** names = nullptr;
  int count = 0;
  call(ErrorCode::kNoRuntime, abi::kGetAvailableProviders, &names, &count);
  const bool found = std::find(names, names + count, name) != names + count;
  call(ErrorCode::kNoRuntime, abi::kReleaseAvailableProviders, names, count);
  return found;
}

void Library::refuse(ErrorCode code, const std::string& reason) const {
  if (is_out_of_memory(reason)) {
    throw Error(
        ErrorCode::kOutOfDeviceMemory, reason, name_,
        "end other programs that use the GPU (nvidia-smi lists them), open fewer sessions, or build with a shorter "
        "--max-seq-len.");
  }
  throw Error(code, reason, name_,
              code == ErrorCode::kNoRuntime ? kInstall : "make the model again with `awq2trt build`.");
}

}  // namespace ort
}  // namespace awq2trt
