// ResidualNorm on a GPU against its definition in fp64: both norms, both types, with and without residual and bias.
#include <cmath>
#include <cstring>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/gpu_test.h"
#include "kernels/residual_norm/residual_norm.h"

namespace awq2trt {
namespace {

class ResidualNormGpu : public GpuTest {
 protected:
  // Inputs as large as in a residual stream, so that squares that overflow fp16 would show.
  template <typename T>
  void check(const NormProblem& p) {
    SCOPED_TRACE(std::to_string(p.rows) + " x " + std::to_string(p.width) + (p.rms ? " rms" : " layer") +
                 (p.has_residual ? " residual" : "") + (p.has_bias ? " bias" : ""));
    ASSERT_EQ(check_validity(p), nullptr);
    std::mt19937 random(test_seed());
    const size_t count = static_cast<size_t>(p.rows) * p.width;
    const std::vector<T> x = random_normal<T>(count, 50.f, 1000.f, random);
    const std::vector<T> residual = random_normal<T>(count, 0.f, 1000.f, random);
    const std::vector<T> gain = random_normal<T>(p.width, 1.f, 0.3f, random),
                         bias = random_normal<T>(p.width, 0.f, 1.f, random);
    const DeviceArray<T> d_x(x), d_residual(residual), d_gain(gain), d_bias(bias), d_sum(count), d_y(count);
    ASSERT_CUDA(cudaMemset(d_sum.get(), 0xff, count * sizeof(T)));
    ASSERT_CUDA(cudaMemset(d_y.get(), 0xff, count * sizeof(T)));
    const NormTensors tensors = {d_x.get(),
                                 p.has_residual ? d_residual.get() : nullptr,
                                 d_gain.get(),
                                 p.has_bias ? d_bias.get() : nullptr,
                                 p.has_residual ? d_sum.get() : nullptr,
                                 d_y.get()};
    ASSERT_CUDA(launch_residual_norm(p, tensors, device_.sm >= 90, nullptr));
    ASSERT_CUDA(cudaDeviceSynchronize());
    const std::vector<T> sum = d_sum.host(), y = d_y.host();
    double difference = 0.0, norm = 0.0;
    for (int row = 0; row < p.rows; ++row) {
      std::vector<double> values(p.width);
      double mean = 0.0, squares = 0.0;
      for (int i = 0; i < p.width; ++i) {
        const size_t at = static_cast<size_t>(row) * p.width + i;
        const float added = static_cast<float>(x[at]) + (p.has_residual ? static_cast<float>(residual[at]) : 0.f);
        const T rounded = static_cast<T>(added);
        if (p.has_residual) ASSERT_EQ(std::memcmp(&sum[at], &rounded, sizeof(T)), 0) << "sum at " << at;
        values[i] = static_cast<float>(rounded);
        mean += p.rms ? 0.0 : values[i] / p.width;
      }
      for (double value : values) squares += (value - mean) * (value - mean);
      for (int i = 0; i < p.width; ++i) {
        const double want = (values[i] - mean) / std::sqrt(squares / p.width + p.eps) * static_cast<float>(gain[i]) +
                            (p.has_bias ? static_cast<float>(bias[i]) : 0.f);
        const double d = static_cast<float>(y[static_cast<size_t>(row) * p.width + i]) - want;
        difference += d * d;
        norm += want * want;
      }
    }
    EXPECT_LT(std::sqrt(difference / norm), p.dtype == DataType::kHalf ? 5e-4 : 4e-3);  // rounding y, with room
  }
};

TEST_F(ResidualNormGpu, WidthsOfModelsAndAwkwardOnes) {
  for (const int width : {8, 64, 72, 576, 2048, 4096, 4544, 5120, 8192, 16384}) {
    for (const int rows : {1, 3, 64}) {
      check<__half>({rows, width, 1e-5f, true, true, false, DataType::kHalf});
      check<__nv_bfloat16>({rows, width, 1e-5f, false, true, true, DataType::kBFloat16});
    }
  }
  check<__half>({2, 4096, 1e-5f, true, false, false, DataType::kHalf});
  check<__half>({2, 4096, 1e-5f, false, false, false, DataType::kHalf});
  check<__half>({2, 768, 1e-5f, false, true, true, DataType::kHalf});
}

TEST_F(ResidualNormGpu, RefusesWhatItCannotTake) {
  NormProblem p = {1, 20, 1e-5f, true, false, false, DataType::kHalf};
  EXPECT_NE(check_validity(p), nullptr);
  p.width = 16392;
  EXPECT_NE(check_validity(p), nullptr);
  p.width = 64;
  EXPECT_EQ(launch_residual_norm(p, NormTensors{}, false, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace awq2trt
