// See cuda_memory.h. Functions, types and numbers are those of the CUDA driver API,
// https://docs.nvidia.com/cuda/cuda-driver-api: plain C types, which have not changed since CUDA 4.
#include "ort/cuda_memory.h"

#include <dlfcn.h>

#include <vector>

namespace awq2trt {
namespace ort {
namespace {

using Status = int;
using Device = int;
using Pointer = unsigned long long;

constexpr Status kSuccess = 0, kOutOfMemory = 2;
constexpr int kCapabilityMajor = 75, kCapabilityMinor = 76;  // CUdevice_attribute
constexpr int kIntegrated = 18;
constexpr unsigned kStreamNonBlocking = 1;
constexpr size_t kNameBytes = 256;
constexpr char kNewerDriver[] = "install NVIDIA driver 580 or later (https://www.nvidia.com/drivers).";
constexpr char kCpuInstead[] = "run this on a machine with an NVIDIA GPU, or build the model with --target cpu.";

struct Driver {
  Status (*init)(unsigned);
  Status (*driver_version)(int*);
  Status (*device_count)(int*);
  Status (*device)(Device*, int);
  Status (*device_name)(char*, int, Device);
  Status (*device_attribute)(int*, int, Device);
  Status (*retain_context)(void**, Device);
  Status (*release_context)(Device);
  Status (*get_context)(void**);
  Status (*set_context)(void*);
  Status (*create_stream)(void**, unsigned);
  Status (*destroy_stream)(void*);
  Status (*synchronize)(void*);
  Status (*allocate)(Pointer*, size_t);
  Status (*free)(Pointer);
  Status (*allocate_host)(void**, size_t, unsigned);
  Status (*free_host)(void*);
  Status (*fill)(Pointer, unsigned char, size_t, void*);
  Status (*to_device)(Pointer, const void*, size_t, void*);
  Status (*to_host)(void*, Pointer, size_t, void*);
  Status (*on_device)(Pointer, Pointer, size_t, void*);
  Status (*memory_info)(size_t*, size_t*);
  Status (*error_text)(Status, const char**);
};

template <typename Function>
void find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) {
    throw Error(ErrorCode::kNoDriver, std::string("the NVIDIA driver lacks ") + name, "libcuda.so.1", kNewerDriver);
  }
}

Driver open_driver() {
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    throw Error(ErrorCode::kNoDriver, "there is no NVIDIA driver here", "libcuda.so.1", kCpuInstead);
  }
  Driver driver{};
  find(library, "cuInit", &driver.init);
  find(library, "cuDriverGetVersion", &driver.driver_version);
  find(library, "cuDeviceGetCount", &driver.device_count);
  find(library, "cuDeviceGet", &driver.device);
  find(library, "cuDeviceGetName", &driver.device_name);
  find(library, "cuDeviceGetAttribute", &driver.device_attribute);
  find(library, "cuDevicePrimaryCtxRetain", &driver.retain_context);
  find(library, "cuDevicePrimaryCtxRelease_v2", &driver.release_context);
  find(library, "cuCtxGetCurrent", &driver.get_context);
  find(library, "cuCtxSetCurrent", &driver.set_context);
  find(library, "cuStreamCreate", &driver.create_stream);
  find(library, "cuStreamDestroy_v2", &driver.destroy_stream);
  find(library, "cuStreamSynchronize", &driver.synchronize);
  find(library, "cuMemAlloc_v2", &driver.allocate);
  find(library, "cuMemFree_v2", &driver.free);
  find(library, "cuMemHostAlloc", &driver.allocate_host);
  find(library, "cuMemFreeHost", &driver.free_host);
  find(library, "cuMemsetD8Async", &driver.fill);
  find(library, "cuMemcpyHtoDAsync_v2", &driver.to_device);
  find(library, "cuMemcpyDtoHAsync_v2", &driver.to_host);
  find(library, "cuMemcpyDtoDAsync_v2", &driver.on_device);
  find(library, "cuMemGetInfo_v2", &driver.memory_info);
  find(library, "cuGetErrorString", &driver.error_text);
  return driver;
}

struct Gpu {
  Device device;
  std::string name;
};

// CUDA's versions as the driver writes them: 13000 is 13.0.
Version cuda_version(int number) { return {number / 1000, number % 1000 / 10}; }

Gpu find_gpu(const Driver& driver, const LoweredRecord& record, int32_t index) {
  const std::string where = "device " + std::to_string(index);
  int number = 0, count = 0;
  if (driver.init(0) != kSuccess || driver.driver_version(&number) != kSuccess ||
      driver.device_count(&count) != kSuccess || count == 0) {
    throw Error(ErrorCode::kNoDriver, "the NVIDIA driver finds no GPU here", where, kCpuInstead);
  }
  const Version cuda = cuda_version(number);
  if (record.minimum_cuda && cuda[0] < (*record.minimum_cuda)[0]) {  // drivers run every minor version of a major one
    throw Error(ErrorCode::kNoDriver,
                "the NVIDIA driver runs CUDA up to " + to_text(cuda) + ", expected " + to_text(*record.minimum_cuda),
                where, kNewerDriver);
  }
  if (index < 0 || index >= count) {
    throw Error(ErrorCode::kWrongDevice, "there is no such GPU here: there are " + std::to_string(count), where,
                "LoadOptions::device = 0 is the first one.");
  }
  Gpu gpu{};
  char name[kNameBytes] = "";
  Version capability(2);
  if (driver.device(&gpu.device, index) != kSuccess || driver.device_name(name, sizeof(name), gpu.device) != kSuccess ||
      driver.device_attribute(capability.data(), kCapabilityMajor, gpu.device) != kSuccess ||
      driver.device_attribute(capability.data() + 1, kCapabilityMinor, gpu.device) != kSuccess) {
    throw Error(ErrorCode::kNoDriver, "the NVIDIA driver does not describe this GPU", where, kNewerDriver);
  }
  gpu.name = name;
  if (record.minimum_compute_capability && capability < *record.minimum_compute_capability) {
    throw Error(ErrorCode::kWrongDevice,
                gpu.name + " has compute capability " + to_text(capability) + ", expected " +
                    to_text(*record.minimum_compute_capability) + " or later",
                where, "use a later GPU, or build the model with --target cpu.");
  }
  return gpu;
}

// Sets another context on this thread for a while, and then restores the program's own.
class InContext {
 public:
  InContext(const Driver& driver, void* context) : driver_(driver) {
    driver_.get_context(&before_);
    driver_.set_context(context);
  }
  ~InContext() { driver_.set_context(before_); }
  InContext(const InContext&) = delete;
  InContext& operator=(const InContext&) = delete;

 private:
  const Driver& driver_;
  void* before_ = nullptr;
};

class CudaMemory : public DeviceMemory {
 public:
  CudaMemory(const Driver& driver, const Gpu& gpu, const LoadOptions& options)
      : driver_(driver), gpu_(gpu), index_(options.device), allocator_(options.allocator), stream_(options.stream) {
    check("cuDevicePrimaryCtxRetain", driver_.retain_context(&context_, gpu_.device));
    try {
      const InContext in(driver_, context_);
      if (stream_ == nullptr) {
        check("cuStreamCreate", driver_.create_stream(&stream_, kStreamNonBlocking));
        owns_stream_ = true;
      }
    } catch (...) {
      driver_.release_context(gpu_.device);
      throw;
    }
  }
  ~CudaMemory() override {
    if (owns_stream_) {
      const InContext in(driver_, context_);
      driver_.destroy_stream(stream_);
    }
    driver_.release_context(gpu_.device);
  }

  const char* runtime_name() const override { return "Cuda"; }
  int32_t index() const override { return index_; }
  const std::string& title() const override { return gpu_.name; }
  void* stream() const override { return stream_; }
  // A Jetson's GPU shares the host's memory, and counts the cache of files as used, although all of that can be freed.
  MemoryInfo info() override {
    const InContext in(driver_, context_);
    size_t free_bytes = 0, total_bytes = 0;
    int integrated = 0;
    check("cuMemGetInfo", driver_.memory_info(&free_bytes, &total_bytes));
    check("cuDeviceGetAttribute", driver_.device_attribute(&integrated, kIntegrated, gpu_.device));
    return {integrated != 0 ? total_bytes : free_bytes, total_bytes};
  }
  void use_on_this_thread() override { check("cuCtxSetCurrent", driver_.set_context(context_)); }

  void* allocate(size_t bytes) override {
    Pointer memory = 0;
    if (allocator_.allocate != nullptr) {
      memory = reinterpret_cast<Pointer>(allocator_.allocate(bytes, allocator_.context));
      if (memory == 0) check("LoadOptions::allocator", kOutOfMemory);
    } else {
      check("cuMemAlloc", driver_.allocate(&memory, bytes));
    }
    check("cuMemsetD8Async", driver_.fill(memory, 0, bytes, stream_));
    // NOLINTNEXTLINE(performance-no-int-to-ptr): the driver gives addresses as integers.
    return reinterpret_cast<void*>(memory);
  }
  void free(void* memory) noexcept override {
    if (allocator_.allocate != nullptr) {
      allocator_.free(memory, allocator_.context);
    } else {
      driver_.free(reinterpret_cast<Pointer>(memory));
    }
  }
  void* allocate_host(size_t bytes) override {
    void* memory = nullptr;
    check("cuMemHostAlloc", driver_.allocate_host(&memory, bytes, 0));
    return memory;
  }
  void free_host(void* memory) noexcept override { driver_.free_host(memory); }

  void write(void* to, const void* from_host, size_t bytes) override {
    check("cuMemcpyHtoDAsync", driver_.to_device(reinterpret_cast<Pointer>(to), from_host, bytes, stream_));
  }
  void read(void* to_host, const void* from, size_t bytes) override {
    check("cuMemcpyDtoHAsync", driver_.to_host(to_host, reinterpret_cast<Pointer>(from), bytes, stream_));
  }
  void copy(void* to, const void* from, size_t bytes) override {
    check("cuMemcpyDtoDAsync",
          driver_.on_device(reinterpret_cast<Pointer>(to), reinterpret_cast<Pointer>(from), bytes, stream_));
  }
  void synchronize() override { check("cuStreamSynchronize", driver_.synchronize(stream_)); }

 private:
  void check(const char* function, Status status) const {
    if (status == kSuccess) return;
    const char* reason = nullptr;
    if (driver_.error_text(status, &reason) != kSuccess || reason == nullptr) reason = "unknown error";
    const std::string what = std::string(function) + " failed: " + reason;
    if (status == kOutOfMemory) {
      throw Error(
          ErrorCode::kOutOfDeviceMemory, what, gpu_.name,
          "end other programs that use the GPU (nvidia-smi lists them), open fewer sessions, or build with a shorter "
          "--max-seq-len.");
    }
    throw Error(ErrorCode::kRunFailed, what, gpu_.name,
                "check with nvidia-smi what else uses the GPU; a driver in a bad state needs a restart.");
  }

  Driver driver_;
  Gpu gpu_;
  int32_t index_;
  DeviceAllocator allocator_;
  void* context_ = nullptr;
  void* stream_;
  bool owns_stream_ = false;
};

}  // namespace

std::unique_ptr<DeviceMemory> open_cuda_memory(const LoweredRecord& record, const LoadOptions& options) {
  const Driver driver = open_driver();
  return std::make_unique<CudaMemory>(driver, find_gpu(driver, record, options.device), options);
}

}  // namespace ort
}  // namespace awq2trt
