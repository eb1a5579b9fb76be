// The 8-bit kernels on a GPU against the op's definition in fp64: every number of tokens that has its own kernel, rows
// that fit 16-byte loads and rows that do not, more than one block. Outputs are poisoned with NaN.
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/gpu_test.h"
#include "kernels/w8a16_linear/w8a16_linear.h"

namespace awq2trt {
namespace {

template <typename T>
__global__ void reference_kernel(GemmProblem p, int groups, const T* x, const int8_t* codes, const T* scales,
                                 const int8_t* zeros, const T* bias, double* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<int64_t>(p.m) * p.n) return;
  const int64_t token = i / p.n, row = i % p.n;
  double sum = bias != nullptr ? static_cast<double>(static_cast<float>(bias[row])) : 0.0;
  for (int64_t k = 0; k < p.k; ++k) {
    const int64_t group = row * groups + k / p.group_size;
    const int step = codes[row * p.k + k] - (zeros != nullptr ? zeros[group] : 0);
    sum += static_cast<double>(static_cast<float>(x[token * p.k + k])) *
           (static_cast<double>(static_cast<float>(scales[group])) * step);
  }
  y[i] = sum;
}

std::vector<int8_t> random_bytes(size_t count, std::mt19937& random) {
  std::vector<int8_t> values(count);
  for (int8_t& value : values) value = static_cast<int8_t>(random());
  return values;
}

class W8A16LinearGpu : public GpuTest {
 protected:
  // `offset`: bytes by which the codes miss an alignment of 16.
  template <typename T>
  void check_typed(const GemmProblem& p, size_t offset) {
    ASSERT_EQ(check_validity(p), nullptr);
    std::mt19937 random(test_seed());
    const size_t groups = static_cast<size_t>(p.n) * p.groups(), outputs = static_cast<size_t>(p.m) * p.n;
    const DeviceArray<T> x(random_normal<T>(static_cast<size_t>(p.m) * p.k, 0.f, 1.f, random));
    const DeviceArray<int8_t> all_codes(random_bytes(static_cast<size_t>(p.n) * p.k + offset, random));
    const int8_t* const codes = all_codes.get() + offset;
    const DeviceArray<T> scales(random_normal<T>(groups, 0.001f, 0.0002f, random));
    const DeviceArray<int8_t> zeros(random_bytes(groups, random));
    const DeviceArray<T> bias(random_normal<T>(p.n, 0.f, 1.f, random)), y(outputs);
    const DeviceArray<double> expected(outputs);
    reference_kernel<T><<<(outputs + 255) / 256, 256>>>(p, p.groups(), x.get(), codes, scales.get(),
                                                        p.has_zeros ? zeros.get() : nullptr,
                                                        p.has_bias ? bias.get() : nullptr, expected.get());
    const LinearTensors tensors = {x.get(),    codes,   scales.get(), p.has_zeros ? zeros.get() : nullptr,
                                   bias.get(), y.get(), nullptr};
    std::vector<T> first;
    for (int call = 0; call < 2; ++call) {
      ASSERT_CUDA(cudaMemset(y.get(), 0xff, outputs * sizeof(T)));
      ASSERT_CUDA(launch_w8a16_linear(p, tensors, call == 1 && device_.sm >= 90, nullptr));
      ASSERT_CUDA(cudaDeviceSynchronize());
      if (call == 0) first = y.host();
    }
    const std::vector<T> got = y.host();
    EXPECT_EQ(std::memcmp(first.data(), got.data(), outputs * sizeof(T)), 0) << "two calls differ";
    const std::vector<double> want = expected.host();
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < outputs; ++i) {
      const double d = static_cast<double>(static_cast<float>(got[i])) - want[i];
      difference += d * d;
      norm += want[i] * want[i];
    }
    // Rounding y alone costs 2.8e-4 in fp16 and 2.3e-3 in bf16.
    EXPECT_LT(std::sqrt(difference / norm), p.dtype == DataType::kHalf ? 1e-3 : 8e-3);
  }

  void check(GemmProblem p, size_t offset = 0) {
    for (const DataType dtype : {DataType::kHalf, DataType::kBFloat16}) {
      p.dtype = dtype;
      SCOPED_TRACE("m " + std::to_string(p.m) + " n " + std::to_string(p.n) + " k " + std::to_string(p.k) + " g " +
                   std::to_string(p.group_size) + (p.has_zeros ? " zeros" : "") + (p.has_bias ? " bias" : "") +
                   (dtype == DataType::kHalf ? " half" : " bfloat16"));
      dtype == DataType::kHalf ? check_typed<__half>(p, offset) : check_typed<__nv_bfloat16>(p, offset);
    }
  }
};

TEST_F(W8A16LinearGpu, EveryNumberOfTokens) {
  for (const int m : {1, 2, 3, 8, 9, 21}) {
    check({m, 1000, 576, 128, {}, true, false});   // a shorter last group, teams of 8 lanes
    check({m, 515, 4096, 128, {}, true, true});    // whole warps, an odd number of rows
    check({m, 77, 2064, 2064, {}, false, false});  // one group a row
  }
}

TEST_F(W8A16LinearGpu, AwkwardRows) {
  for (const int m : {1, 5}) {
    check({m, 33, 72, 32, {}, true, true});       // K is no multiple of 16
    check({m, 33, 96, 24, {}, true, false});      // nor is G
    check({m, 33, 576, 64, {}, true, false}, 4);  // codes that start between
    check({m, 1, 16, 16, {}, false, true});
    check({m, 3, 8, 8, {}, true, false});
  }
}

TEST_F(W8A16LinearGpu, AHead) { check({1, 49152, 576, 128, {}, true, false}); }

TEST_F(W8A16LinearGpu, ItIsCapturedInAGraph) {
  const GemmProblem p = {1, 256, 2048, 128, DataType::kHalf, false, false};
  std::mt19937 random(test_seed());
  const DeviceArray<__half> x(random_normal<__half>(2048, 0.f, 1.f, random)), y(256);
  const DeviceArray<int8_t> codes(random_bytes(256 * 2048, random));
  const DeviceArray<__half> scales(random_normal<__half>(256 * 16, 0.001f, 0.0002f, random));
  const LinearTensors tensors = {x.get(), codes.get(), scales.get(), nullptr, nullptr, y.get(), nullptr};
  ASSERT_CUDA(launch_w8a16_linear(p, tensors, false, nullptr));
  ASSERT_CUDA(cudaDeviceSynchronize());
  const std::vector<__half> expected = y.host();
  ASSERT_CUDA(cudaMemset(y.get(), 0xff, 256 * sizeof(__half)));
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ASSERT_CUDA(cudaStreamCreate(&stream));
  ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  ASSERT_CUDA(launch_w8a16_linear(p, tensors, device_.sm >= 90, stream));
  ASSERT_CUDA(launch_w8a16_linear(p, tensors, device_.sm >= 90, stream));
  ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
  ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  ASSERT_CUDA(cudaGraphLaunch(executable, stream));
  ASSERT_CUDA(cudaStreamSynchronize(stream));
  EXPECT_EQ(std::memcmp(y.host().data(), expected.data(), 256 * sizeof(__half)), 0);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(W8A16LinearGpu, RefusesWhatItCannotTake) {
  const GemmProblem p = {1, 16, 64, 32, DataType::kHalf, false, false};
  const DeviceArray<__half> numbers(1024);
  const DeviceArray<int8_t> codes(1024);
  const __half* const data = numbers.get();
  LinearTensors tensors = {data, codes.get(), data, nullptr, nullptr, numbers.get(), nullptr};
  EXPECT_EQ(launch_w8a16_linear({1, 16, 12, 4, DataType::kHalf, false, false}, tensors, false, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(launch_w8a16_linear({1, 16, 64, 32, DataType::kHalf, true, false}, tensors, false, nullptr),
            cudaErrorInvalidValue);
  tensors.x = data + 1;
  EXPECT_EQ(launch_w8a16_linear(p, tensors, false, nullptr), cudaErrorMisalignedAddress);
  EXPECT_EQ(launch_w8a16_linear({0, 16, 64, 32, DataType::kHalf, false, false}, {}, false, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace awq2trt
