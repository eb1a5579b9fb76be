// A GPU's memory (plugins/runtime/ort/cuda_memory.cpp) over driver_stub.cpp.
//
//   memory_on_stub DEVICE BYTES
//
// Out: `ok`, or the code of the error and its text. Data copied to the GPU, on it and back must be unchanged, and the
//      thread's own context must be restored.
#include "ort/cuda_memory.h"

#include <cstdlib>
#include <cstring>
#include <iostream>

namespace {

extern "C" int cuCtxGetCurrent(void** context);

constexpr char kText[] = "there and back again";

void check(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

void copy_around(awq2trt::DeviceMemory* memory, size_t bytes) {
  memory->use_on_this_thread();
  void* const first = memory->allocate(bytes);
  void* const second = memory->allocate(bytes);
  char* const host = static_cast<char*>(memory->allocate_host(sizeof(kText)));
  memory->read(host, first, sizeof(kText));
  memory->synchronize();
  check(host[0] == '\0', "new memory is not zero");
  std::memcpy(host, kText, sizeof(kText));
  memory->write(first, host, sizeof(kText));
  memory->copy(second, first, sizeof(kText));
  memory->synchronize();
  std::memset(host, 0, sizeof(kText));
  memory->read(host, second, sizeof(kText));
  memory->synchronize();
  check(std::strcmp(host, kText) == 0, "copies differ");
  memory->free(first);
  memory->free(second);
  memory->free_host(host);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  awq2trt::LoweredRecord record;
  record.minimum_cuda = {13, 0};
  record.minimum_compute_capability = {8, 0};
  awq2trt::LoadOptions options;
  options.device = std::atoi(argv[1]);
  int allocated = 0;
  options.allocator.context = &allocated;
  if (std::getenv("STUB_ALLOCATOR") != nullptr) {
    options.allocator.allocate = [](size_t bytes, void* context) {
      ++*static_cast<int*>(context);
      return std::malloc(bytes);
    };
    options.allocator.free = [](void* memory, void* context) {
      --*static_cast<int*>(context);
      std::free(memory);
    };
  }
  try {
    const auto memory = awq2trt::ort::open_cuda_memory(record, options);
    void* context = &record;
    const awq2trt::MemoryInfo info = memory->info();
    check(cuCtxGetCurrent(&context) == 0 && context == nullptr, "the thread's context is another now");
    copy_around(memory.get(), static_cast<size_t>(std::atoll(argv[2])));
    check(allocated == 0, "memory of the allocator is left");
    std::cout << "ok, free " << (info.free_bytes >> 20) << " MiB of " << (info.total_bytes >> 20) << '\n';
  } catch (const awq2trt::Error& error) {
    std::cout << static_cast<int>(error.code()) << ' ' << error.what() << '\n';
  } catch (const std::exception& error) {
    std::cout << error.what() << '\n';
  }
}
