// Shared by tests of kernels on a GPU: device memory that compute-sanitizer can watch, random inputs, and a fixture
// that skips without a GPU (AWQ2TRT_REQUIRE_GPU=1: fails).
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/device/device.h"

namespace awq2trt {

#define ASSERT_CUDA(call) ASSERT_EQ(call, cudaSuccess) << cudaGetErrorString(cudaGetLastError())

// Device memory of exactly `count` T, so that compute-sanitizer sees the first access beyond it.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    if (cudaMalloc(&data_, std::max<size_t>(count * sizeof(T), 1)) != cudaSuccess) data_ = nullptr;
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* get() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> values(count_);
    cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

inline unsigned test_seed() {
  static const unsigned seed = [] {
    const char* fixed = std::getenv("AWQ2TRT_TEST_SEED");
    const unsigned value = fixed != nullptr ? std::strtoul(fixed, nullptr, 10) : std::random_device()();
    std::printf("AWQ2TRT_TEST_SEED=%u\n", value);
    return value;
  }();
  return seed;
}

template <typename T>
std::vector<T> random_normal(size_t count, float mean, float deviation, std::mt19937& random) {
  std::normal_distribution<float> distribution(mean, deviation);
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(distribution(random));
  return values;
}

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) {
      ASSERT_EQ(query_device(&device_), cudaSuccess);
      return;
    }
    const char* const required = std::getenv("AWQ2TRT_REQUIRE_GPU");
    if (required != nullptr && std::string(required) == "1") FAIL() << "no CUDA device, and AWQ2TRT_REQUIRE_GPU=1";
    GTEST_SKIP() << "no CUDA device";
  }

  Device device_ = {};
};

}  // namespace awq2trt
