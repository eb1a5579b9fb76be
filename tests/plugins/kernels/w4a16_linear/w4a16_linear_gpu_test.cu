// The kernels on a GPU against the op's definition in fp64: every kernel, every tensor combination, awkward sizes.
//
// Every run draws new inputs (AWQ2TRT_TEST_SEED repeats a run); outputs are poisoned with NaN, so a missing write
// shows. The fp64 reference is a few lines of CUDA that share nothing with the kernels: a CPU would take minutes.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/gpu_test.h"
#include "kernels/w4a16_linear/w4a16_linear.h"

namespace awq2trt {
namespace {

// Relative error in the 2-norm. fp16: rounding y alone costs 2^-11 / sqrt(3) = 2.8e-4; bf16 8 times that, 2.3e-3.
constexpr double kHalfTolerance = 1e-3, kBFloat16Tolerance = 8e-3;

__device__ int int4_of(const uint8_t* packed, int64_t index) {
  const int nibble = (packed[index / 2] >> (index % 2 * 4)) & 0xf;
  return nibble >= 8 ? nibble - 16 : nibble;
}

template <typename T>
__global__ void reference_kernel(GemmProblem p, int groups, const T* x, const uint8_t* codes, const T* scales,
                                 const uint8_t* zeros, const T* bias, double* y) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= static_cast<int64_t>(p.m) * p.n) return;
  const int64_t token = i / p.n, row = i % p.n;
  double sum = bias != nullptr ? static_cast<double>(static_cast<float>(bias[row])) : 0.0;
  for (int64_t k = 0; k < p.k; ++k) {
    const int64_t group = row * groups + k / p.group_size;
    const int zero = zeros != nullptr ? int4_of(zeros, group) : 0;
    sum += static_cast<double>(static_cast<float>(x[token * p.k + k])) *
           (static_cast<double>(static_cast<float>(scales[group])) * (int4_of(codes, row * p.k + k) - zero));
  }
  y[i] = sum;
}

// Tensors of one problem with random contents, on the device.
template <typename T>
struct RandomLinear {
  static std::vector<uint8_t> bytes(size_t count, std::mt19937& random) {
    std::vector<uint8_t> values(count);
    for (uint8_t& value : values) value = static_cast<uint8_t>(random());
    return values;
  }

  RandomLinear(const GemmProblem& problem, std::mt19937 random)
      : p(problem),
        group_count(static_cast<size_t>(p.n) * p.groups()),
        x(random_normal<T>(static_cast<size_t>(p.m) * p.k, 0.f, 1.f, random)),
        codes(bytes(static_cast<size_t>(p.n) * p.k / 2, random)),
        scales(random_normal<T>(group_count, 0.01f, 0.002f, random)),
        zeros(bytes((group_count + 1) / 2, random)),
        bias(random_normal<T>(p.n, 0.f, 1.f, random)),
        y(static_cast<size_t>(p.m) * p.n),
        expected(static_cast<size_t>(p.m) * p.n) {
    const size_t outputs = static_cast<size_t>(p.m) * p.n;
    reference_kernel<T><<<(outputs + 255) / 256, 256>>>(p, p.groups(), x.get(), codes.get(), scales.get(),
                                                        p.has_zeros ? zeros.get() : nullptr,
                                                        p.has_bias ? bias.get() : nullptr, expected.get());
  }

  LinearTensors tensors(void* workspace) const {
    return {x.get(), codes.get(), scales.get(), p.has_zeros ? zeros.get() : nullptr, p.has_bias ? bias.get() : nullptr,
            y.get(), workspace};
  }

  // ||y - expected|| / ||expected||; NaN if any output is.
  double relative_error() const {
    const std::vector<T> got = y.host();
    const std::vector<double> want = expected.host();
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double d = static_cast<double>(static_cast<float>(got[i])) - want[i];
      difference += d * d;
      norm += want[i] * want[i];
    }
    return std::sqrt(difference / norm);
  }

  GemmProblem p;
  size_t group_count;
  DeviceArray<T> x;
  DeviceArray<uint8_t> codes;
  DeviceArray<T> scales;
  DeviceArray<uint8_t> zeros;
  DeviceArray<T> bias;
  DeviceArray<T> y;
  DeviceArray<double> expected;
};

std::string name_of(const GemmProblem& p) {
  return std::string(p.dtype == DataType::kHalf ? "half" : "bfloat16") + "_m" + std::to_string(p.m) + "_n" +
         std::to_string(p.n) + "_k" + std::to_string(p.k) + "_g" + std::to_string(p.group_size) +
         (p.has_zeros ? "_zeros" : "") + (p.has_bias ? "_bias" : "");
}

template <typename T>
void expect_correct(const GemmProblem& problem, const KernelConfig& config) {
  SCOPED_TRACE(name_of(problem) + " kernel " + std::to_string(static_cast<int>(config.kernel)) + " tile " +
               std::to_string(static_cast<int>(config.tile)) + " splits " + std::to_string(config.splits));
  const RandomLinear<T> linear(problem, std::mt19937(test_seed()));
  const DeviceArray<uint8_t> workspace(config.workspace_bytes);
  const size_t y_bytes = sizeof(T) * problem.m * problem.n;
  ASSERT_CUDA(cudaMemset(linear.y.get(), 0xff, y_bytes));  // NaN in both types
  ASSERT_CUDA(launch_w4a16_linear(problem, config, linear.tensors(workspace.get()), nullptr));
  ASSERT_CUDA(cudaDeviceSynchronize());
  const double tolerance = problem.dtype == DataType::kHalf ? kHalfTolerance : kBFloat16Tolerance;
  EXPECT_LT(linear.relative_error(), tolerance);

  // Same inputs, same bits.
  const std::vector<T> first = linear.y.host();
  ASSERT_CUDA(cudaMemset(linear.y.get(), 0xff, y_bytes));
  ASSERT_CUDA(launch_w4a16_linear(problem, config, linear.tensors(workspace.get()), nullptr));
  const std::vector<T> second = linear.y.host();
  EXPECT_EQ(std::memcmp(first.data(), second.data(), y_bytes), 0) << "two calls differ";
}

void expect_correct(const GemmProblem& problem, const KernelConfig& config) {
  if (problem.dtype == DataType::kHalf) {
    expect_correct<__half>(problem, config);
  } else {
    expect_correct<__nv_bfloat16>(problem, config);
  }
}

class W4A16LinearGpu : public GpuTest {
 protected:
  void check(const GemmProblem& problem) {
    ASSERT_EQ(check_validity(problem), nullptr);
    expect_correct(problem, choose_config(problem, device_));
  }
};

constexpr DataType kTypes[] = {DataType::kHalf, DataType::kBFloat16};
constexpr int kWholeRow = -1;

GemmProblem problem_of(int m, int n, int k, int group_size, DataType dtype, bool zeros, bool bias) {
  return {m, n, k, group_size == kWholeRow ? k : group_size, dtype, zeros, bias};
}

struct Shape {
  int k, n;
};

TEST_F(W4A16LinearGpu, EveryCombinationOfTensorsAndGroups) {
  for (const DataType dtype : kTypes) {
    for (const int k : {576, 4544}) {
      for (const int group_size : {32, 64, 128, kWholeRow}) {
        for (const int flags : {0, 1, 2, 3}) {
          for (const int m : {1, 5, 16, 65}) check(problem_of(m, 151, k, group_size, dtype, flags & 1, flags & 2));
        }
      }
    }
  }
}

TEST_F(W4A16LinearGpu, EveryNumberOfTokens) {
  for (const DataType dtype : kTypes) {
    for (int m = 1; m <= 17; ++m) check(problem_of(m, 333, 1536, 128, dtype, true, true));
    for (const int m : {31, 32, 33, 63, 64, 65, 127, 128, 129, 512}) {
      check(problem_of(m, 333, 1536, 128, dtype, true, true));
      check(problem_of(m, 2048, 1536, 64, dtype, true, false));
    }
    check(problem_of(2049, 520, 1088, 128, dtype, true, true));
  }
}

TEST_F(W4A16LinearGpu, EveryWarpgroupTile) {
  if (!device_.wgmma) GTEST_SKIP() << "wgmma is Hopper's alone, and the build must be for it";
  for (const DataType dtype : kTypes) {
    for (int tile = 0; tile < static_cast<int>(WarpgroupTile::kCount); ++tile) {
      KernelConfig config = {};
      config.kernel = Kernel::kWarpgroup;
      config.warpgroup_tile = static_cast<WarpgroupTile>(tile);
      config.tile = TileShape::k128x128;
      config.splits = 1;
      config.k_per_split = 4096;
      config.overlap = true;
      // Fewer stages than are copied ahead, several rounds of the slots, half a stage at the end; groups of half a
      // stage, and of one and a half, that begin in the middle of one.
      for (const int k : {32, 64, 96, 1152, 2080}) {
        for (const int group_size : {32, 64, 96, 128, kWholeRow}) {
          for (const int flags : {0, 1, 2, 3})
            expect_correct(problem_of(70, 200, k, group_size, dtype, flags & 1, flags & 2), config);
        }
      }
      for (const int m : {1, 127, 256, 257, 600}) {
        for (const int n : {8, 192, 520}) expect_correct(problem_of(m, n, 576, 128, dtype, true, true), config);
      }
      expect_correct(problem_of(70, 200, 1160, 128, dtype, true, true), config);  // codes off 16 bytes: the tile kernel
    }
  }
}

// One test per layer and type, so that compute-sanitizer, which takes minutes for each, can run them in parallel.
class ShapesOfRealModels : public W4A16LinearGpu, public testing::WithParamInterface<std::tuple<Shape, DataType>> {};

TEST_P(ShapesOfRealModels, EveryKindOfKernel) {
  const auto [shape, dtype] = GetParam();
  for (const int m : {1, 4, 16, 64, 512}) check(problem_of(m, shape.n, shape.k, 128, dtype, true, false));
}

std::string name_of_layer(const testing::TestParamInfo<std::tuple<Shape, DataType>>& info) {
  const auto [shape, dtype] = info.param;
  return "k" + std::to_string(shape.k) + "_n" + std::to_string(shape.n) +
         (dtype == DataType::kHalf ? "_half" : "_bfloat16");
}

constexpr Shape kRealShapes[] = {{576, 1536}, {1536, 576}, {4096, 4096}, {4544, 4672}, {11008, 4096}, {4096, 22016}};
INSTANTIATE_TEST_SUITE_P(W4A16LinearGpu, ShapesOfRealModels,
                         testing::Combine(testing::ValuesIn(kRealShapes), testing::ValuesIn(kTypes)), name_of_layer);

TEST_F(W4A16LinearGpu, RowsOfCodesThatAreNotAlignedTo16Bytes) {
  for (const DataType dtype : kTypes) {
    for (const int k : {8, 24, 136, 1000, 2056}) {
      for (const int group_size : {32, 128, kWholeRow}) {
        for (const int m : {1, 7, 16, 40, 130}) check(problem_of(m, 77, k, group_size, dtype, true, true));
      }
    }
  }
}

TEST_F(W4A16LinearGpu, GroupsThatDoNotFitLoads) {
  for (const DataType dtype : kTypes) {
    for (const int group_size : {1, 7, 16, 48, 100}) {
      for (const int m : {1, 3, 20}) check(problem_of(m, 37, 1000, group_size, dtype, true, true));
    }
  }
}

TEST_F(W4A16LinearGpu, NarrowLayersSplitK) {
  for (const int m : {9, 33, 128}) check(problem_of(m, 48, 8192, 128, DataType::kHalf, true, true));
}

KernelConfig decode_config(Kernel kernel) {
  KernelConfig config = {};
  config.kernel = kernel;
  config.rows_per_block = 16;
  config.warps = 8;
  config.splits = 1;
  return config;
}

TEST_F(W4A16LinearGpu, SmallLayersAtOnce) {
  const KernelConfig config = decode_config(Kernel::kDecodeOnce);
  for (const DataType dtype : kTypes) {
    // Fewer steps than warps, tails of a step and of a round of the warps, rows off 16 bytes.
    for (const int k : {32, 288, 1536, 2080, 4096, 5120, 136}) {
      for (const int group_size : {128, 384, kWholeRow}) {
        for (const int m : {1, 2, 3, 8}) {
          expect_correct(problem_of(m, 333, k, group_size, dtype, true, true), config);
          expect_correct(problem_of(m, 15, k, group_size, dtype, false, false), config);
        }
      }
    }
  }
}

TEST_F(W4A16LinearGpu, EveryTileShapeAndSplit) {
  for (const DataType dtype : kTypes) {
    for (int tile = 0; tile < static_cast<int>(TileShape::kCount); ++tile) {
      for (const int splits : {1, 2, 3}) {
        // Complete stages and groups, which have their own main loop, and stages with tails and groups within them.
        for (const auto& [k, group_size] : {std::pair(1152, 128), {1152, 384}, {1152, 32}, {1184, 128}, {1184, 32}}) {
          const GemmProblem problem = problem_of(70, 200, k, group_size, dtype, true, true);
          KernelConfig config = {};
          config.kernel = Kernel::kTile;
          config.tile = static_cast<TileShape>(tile);
          config.k_per_split = (k / splits + 127) / 128 * 128;
          config.splits = (k + config.k_per_split - 1) / config.k_per_split;
          config.workspace_bytes = sizeof(float) * config.splits * problem.m * problem.n;
          expect_correct(problem, config);
        }
      }
    }
  }
}

TEST_F(W4A16LinearGpu, LaunchesThatOverlapSeeWhatTheOneBeforeWrote) {
  // A chain of layers, each reading the output of the previous one, with nothing in between.
  constexpr int kFeatures = 512, kLayers = 12;
  for (const auto& [m, kernel] : {std::pair(1, Kernel::kDecode),
                                  {1, Kernel::kDecodeOnce},
                                  {8, Kernel::kDecode},
                                  {8, Kernel::kDecodeOnce},
                                  {16, Kernel::kTile},
                                  {70, Kernel::kTile},
                                  {300, Kernel::kWarpgroup}}) {
    if (kernel == Kernel::kWarpgroup && !device_.wgmma) continue;
    const GemmProblem problem = problem_of(m, kFeatures, kFeatures, 128, DataType::kHalf, true, false);
    const RandomLinear<__half> linear(problem, std::mt19937(test_seed()));
    KernelConfig config = m > 8 ? choose_config(problem, device_) : decode_config(kernel);
    if (kernel == Kernel::kWarpgroup) config.kernel = kernel;
    ASSERT_EQ(config.kernel, kernel);
    const DeviceArray<uint8_t> workspace(config.workspace_bytes);
    const DeviceArray<__half> other(static_cast<size_t>(m) * kFeatures);
    const auto run = [&](bool overlap) {
      config.overlap = overlap;
      LinearTensors tensors = linear.tensors(workspace.get());
      for (int layer = 0; layer < kLayers; ++layer) {
        tensors.y = layer % 2 == 0 ? linear.y.get() : other.get();
        EXPECT_EQ(launch_w4a16_linear(problem, config, tensors, nullptr), cudaSuccess);
        tensors.x = tensors.y;
      }
      return other.host();
    };
    const std::vector<__half> expected = run(false);
    if (device_.sm < 90) continue;
    for (int repetition = 0; repetition < 10; ++repetition) {
      ASSERT_CUDA(cudaMemset(other.get(), 0xff, sizeof(__half) * m * kFeatures));
      const std::vector<__half> got = run(true);
      ASSERT_EQ(std::memcmp(got.data(), expected.data(), sizeof(__half) * got.size()), 0) << "M = " << m;
    }
  }
}

TEST_F(W4A16LinearGpu, LargeActivationsDoNotOverflow) {
  // Residual streams reach 24,000 and more (fp16's limit is 65,504): sums of products must not pass through fp16.
  const GemmProblem problem = problem_of(1, 64, 256, 128, DataType::kHalf, false, false);
  std::vector<__half> x(256, __float2half(0.f)), scales(128, __float2half(1e-3f)), y(64);
  x[0] = x[1] = __float2half(60000.f);
  const DeviceArray<__half> x_device(x), scales_device(scales), y_device(64);
  const DeviceArray<uint8_t> codes(std::vector<uint8_t>(64 * 128, 0x77));  // every code 7
  for (const int m : {1}) {
    const KernelConfig config = choose_config(problem, device_);
    const LinearTensors tensors = {x_device.get(), codes.get(), scales_device.get(), nullptr, nullptr,
                                   y_device.get(), nullptr};
    ASSERT_CUDA(launch_w4a16_linear(problem, config, tensors, nullptr));
    for (const __half value : y_device.host()) EXPECT_NEAR(__half2float(value), 840.f, 1.f) << "M = " << m;
  }
}

TEST_F(W4A16LinearGpu, RefusesWhatItCannotTake) {
  const GemmProblem good = problem_of(1, 16, 128, 128, DataType::kHalf, false, false);
  const DeviceArray<__half> memory(4096);
  const LinearTensors tensors = {memory.get(), memory.get(), memory.get(), nullptr, nullptr, memory.get(), nullptr};
  const KernelConfig config = choose_config(good, device_);
  GemmProblem bad = good;
  bad.k = 12;
  EXPECT_EQ(launch_w4a16_linear(bad, config, tensors, nullptr), cudaErrorInvalidValue);
  bad = good;
  bad.has_zeros = true;
  EXPECT_EQ(launch_w4a16_linear(bad, config, tensors, nullptr), cudaErrorInvalidValue) << "zeros missing";
  LinearTensors misaligned = tensors;
  misaligned.x = memory.get() + 1;
  EXPECT_EQ(launch_w4a16_linear(good, config, misaligned, nullptr), cudaErrorMisalignedAddress);
}

}  // namespace
}  // namespace awq2trt
