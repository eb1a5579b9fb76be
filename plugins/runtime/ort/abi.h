// The part of ONNX Runtime's C interface that runs a model, in addition to the part that plugins/ort/onnxruntime_abi.h
// declares for operators; that file explains why and how. tests/plugins/runtime/ort/abi_test.cpp compares each line
// with onnxruntime_c_api.h wherever that is installed.
#pragma once

#include "ort/onnxruntime_abi.h"

namespace awq2trt {
namespace ort {
namespace abi {

struct CudaProviderOptions;
struct Env;
struct IoBinding;
struct RunOptions;
struct Session;

enum class LoggingLevel : int { kError = 3, kFatal = 4 };
enum class AllocatorType : int { kDevice = 0 };

using LoggingFunction = void (*)(void* parameter, LoggingLevel, const char* category, const char* id,
                                 const char* location, const char* message);

constexpr Slot<Status*(LoggingFunction, void* parameter, LoggingLevel, const char* id, Env**)>
    kCreateEnvWithCustomLogger{4};
constexpr Slot<void(Env*)> kReleaseEnv{92};

constexpr Slot<Status*(SessionOptions**)> kCreateSessionOptions{10};
constexpr Slot<Status*(SessionOptions*, int threads)> kSetIntraOpNumThreads{24};
constexpr Slot<Status*(SessionOptions*, const char* path)> kRegisterCustomOpsLibrary_V2{228};
constexpr Slot<Status*(SessionOptions*, const char* name, const Value*)> kAddInitializer{150};
constexpr Slot<void(SessionOptions*)> kReleaseSessionOptions{100};

constexpr Slot<Status*(CudaProviderOptions**)> kCreateCUDAProviderOptions{205};
constexpr Slot<Status*(CudaProviderOptions*, const char* const* keys, const char* const* values, size_t count)>
    kUpdateCUDAProviderOptions{206};
constexpr Slot<Status*(CudaProviderOptions*, const char* key, void* value)> kUpdateCUDAProviderOptionsWithValue{263};
constexpr Slot<Status*(SessionOptions*, const CudaProviderOptions*)> kSessionOptionsAppendExecutionProvider_CUDA_V2{
    204};
constexpr Slot<void(CudaProviderOptions*)> kReleaseCUDAProviderOptions{208};
constexpr Slot<Status*(char*** names, int* count)> kGetAvailableProviders{125};
constexpr Slot<Status*(char** names, int count)> kReleaseAvailableProviders{126};

constexpr Slot<Status*(const Env*, const char* path, const SessionOptions*, Session**)> kCreateSession{7};
constexpr Slot<void(Session*)> kReleaseSession{95};

constexpr Slot<Status*(RunOptions**)> kCreateRunOptions{39};
constexpr Slot<Status*(RunOptions*, const char* key, const char* value)> kAddRunConfigEntry{165};
constexpr Slot<void(RunOptions*)> kReleaseRunOptions{97};

constexpr Slot<Status*(Session*, IoBinding**)> kCreateIoBinding{134};
constexpr Slot<Status*(IoBinding*, const char* name, const Value*)> kBindInput{136};
constexpr Slot<Status*(IoBinding*, const char* name, const Value*)> kBindOutput{137};
constexpr Slot<Status*(Session*, const RunOptions*, const IoBinding*)> kRunWithBinding{133};
constexpr Slot<void(IoBinding*)> kReleaseIoBinding{135};

constexpr Slot<Status*(const char* name, AllocatorType, int id, MemoryType, MemoryInfo**)> kCreateMemoryInfo{68};
constexpr Slot<void(MemoryInfo*)> kReleaseMemoryInfo{94};
constexpr Slot<Status*(const MemoryInfo*, void* data, size_t bytes, const int64_t* shape, size_t rank, ElementType,
                       Value**)>
    kCreateTensorWithDataAsOrtValue{49};
constexpr Slot<void(Value*)> kReleaseValue{96};

}  // namespace abi
}  // namespace ort
}  // namespace awq2trt
