// A stand-in for the CUDA driver (libcuda.so.1) on the host's memory: one GPU, as the environment describes it, with a
// gigabyte of memory and numbers for contexts.
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kSuccess = 0, kOutOfMemory = 2, kInvalidContext = 201;
constexpr size_t kMemoryBytes = size_t{1} << 30;
thread_local void* current = nullptr;
char primary = 0;

int number_of(const char* variable, int otherwise) {
  const char* const text = std::getenv(variable);
  return text == nullptr ? otherwise : std::atoi(text);
}

int in_context(int status) { return current == &primary ? status : kInvalidContext; }

}  // namespace

#define STUB extern "C" __attribute__((visibility("default"))) int

STUB cuInit(unsigned) { return kSuccess; }
STUB cuDriverGetVersion(int* version) {
  *version = number_of("STUB_CUDA", 13000);
  return kSuccess;
}
STUB cuDeviceGetCount(int* count) {
  *count = number_of("STUB_COUNT", 1);
  return kSuccess;
}
STUB cuDeviceGet(int* device, int index) {
  *device = index;
  return kSuccess;
}
STUB cuDeviceGetName(char* name, int bytes, int) {
  std::strncpy(name, "A stub", static_cast<size_t>(bytes));
  return kSuccess;
}
STUB cuDeviceGetAttribute(int* value, int attribute, int) {
  constexpr int kCapabilityMajor = 75;
  constexpr int kIntegrated = 18;
  *value = attribute == kCapabilityMajor ? number_of("STUB_MAJOR", 9)
           : attribute == kIntegrated    ? number_of("STUB_INTEGRATED", 0)
                                         : 0;
  return kSuccess;
}
STUB cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &primary;
  return kSuccess;
}
STUB cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
STUB cuCtxGetCurrent(void** context) {
  *context = current;
  return kSuccess;
}
STUB cuCtxSetCurrent(void* context) {
  current = context;
  return kSuccess;
}
STUB cuStreamCreate(void** stream, unsigned) {
  *stream = &primary;
  return in_context(kSuccess);
}
STUB cuStreamDestroy_v2(void*) { return in_context(kSuccess); }
STUB cuStreamSynchronize(void*) { return in_context(kSuccess); }
STUB cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = kMemoryBytes;
  *free_bytes = static_cast<size_t>(number_of("STUB_FREE_MIB", 1024)) << 20;
  return in_context(kSuccess);
}
STUB cuMemAlloc_v2(unsigned long long* memory, size_t bytes) {
  if (bytes > kMemoryBytes) return kOutOfMemory;
  *memory = reinterpret_cast<unsigned long long>(std::malloc(bytes));
  return in_context(kSuccess);
}
STUB cuMemFree_v2(unsigned long long memory) {
  std::free(reinterpret_cast<void*>(memory));
  return in_context(kSuccess);
}
STUB cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  return in_context(kSuccess);
}
STUB cuMemFreeHost(void* memory) {
  std::free(memory);
  return in_context(kSuccess);
}
STUB cuMemsetD8Async(unsigned long long memory, unsigned char value, size_t bytes, void*) {
  std::memset(reinterpret_cast<void*>(memory), value, bytes);
  return in_context(kSuccess);
}
STUB cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void*) {
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return in_context(kSuccess);
}
STUB cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void*) {
  std::memcpy(to, reinterpret_cast<void*>(from), bytes);
  return in_context(kSuccess);
}
STUB cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void*) {
  std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
  return in_context(kSuccess);
}
STUB cuGetErrorString(int status, const char** text) {
  *text = status == kOutOfMemory ? "out of memory" : "invalid device context";
  return kSuccess;
}
