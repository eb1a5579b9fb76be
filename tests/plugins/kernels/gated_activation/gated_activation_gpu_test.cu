// GatedActivation on a GPU against its definition in fp64.
#include <cmath>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/gated_activation/gated_activation.h"
#include "kernels/gpu_test.h"

namespace awq2trt {
namespace {

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return std::max(x, 0.0);
  }
  return x;
}

class GatedActivationGpu : public GpuTest {
 protected:
  template <typename T>
  void check(const ActivationProblem& p) {
    SCOPED_TRACE(std::to_string(p.rows) + " x " + std::to_string(p.width) + " activation " +
                 std::to_string(static_cast<int>(p.activation)));
    ASSERT_EQ(check_validity(p), nullptr);
    std::mt19937 random(test_seed());
    const std::vector<T> x = random_normal<T>(static_cast<size_t>(p.rows) * 2 * p.width, 0.f, 3.f, random);
    const DeviceArray<T> d_x(x), d_y(static_cast<size_t>(p.rows) * p.width);
    ASSERT_CUDA(cudaMemset(d_y.get(), 0xff, static_cast<size_t>(p.rows) * p.width * sizeof(T)));
    ASSERT_CUDA(launch_gated_activation(p, d_x.get(), d_y.get(), device_.sm >= 90, nullptr));
    ASSERT_CUDA(cudaDeviceSynchronize());
    const std::vector<T> y = d_y.host();
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t gate = i / p.width * 2 * p.width + i % p.width;
      const double want = activated(p.activation, static_cast<float>(x[gate])) * static_cast<float>(x[gate + p.width]);
      const double d = static_cast<float>(y[i]) - want;
      difference += d * d;
      norm += want * want;
    }
    EXPECT_LT(std::sqrt(difference / norm), p.dtype == DataType::kHalf ? 5e-4 : 4e-3);  // rounding y, with room
  }
};

TEST_F(GatedActivationGpu, EveryActivationAndType) {
  for (int activation = 0; activation <= static_cast<int>(Activation::kRelu); ++activation) {
    for (const int width : {8, 1000, 1536, 14336}) {
      for (const int rows : {1, 5}) {
        check<__half>({rows, width, static_cast<Activation>(activation), DataType::kHalf});
        check<__nv_bfloat16>({rows, width, static_cast<Activation>(activation), DataType::kBFloat16});
      }
    }
  }
}

TEST_F(GatedActivationGpu, RefusesWhatItCannotTake) {
  ActivationProblem p = {1, 12, Activation::kSilu, DataType::kHalf};
  EXPECT_NE(check_validity(p), nullptr);
  p.width = 16;
  EXPECT_EQ(launch_gated_activation(p, nullptr, nullptr, false, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace awq2trt
