// BestToken on a GPU against the definition: the first of the largest scores.
#include <algorithm>
#include <limits>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/best_token/best_token.h"
#include "kernels/gpu_test.h"

namespace awq2trt {
namespace {

class BestTokenGpu : public GpuTest {
 protected:
  template <typename T>
  std::vector<int64_t> best_of(const std::vector<T>& scores, int rows, DataType dtype) {
    const BestTokenProblem problem = {rows, static_cast<int>(scores.size()) / rows, dtype};
    EXPECT_EQ(check_validity(problem), nullptr);
    const DeviceArray<T> d_scores(scores);
    const DeviceArray<int64_t> d_y(std::vector<int64_t>(rows, -1));
    EXPECT_EQ(launch_best_token(problem, d_scores.get(), d_y.get(), device_.sm >= 90, nullptr), cudaSuccess);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return d_y.host();
  }

  template <typename T>
  void check_random(DataType dtype) {
    std::mt19937 random(test_seed());
    for (const int vocabulary : {1, 7, 8, 513, 4096, 8192, 8200, 32000, 50257, 128256}) {
      for (const int rows : {1, 3}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(vocabulary));
        // Of fp16's few values near the largest, several are equal.
        const std::vector<T> scores = random_normal<T>(static_cast<size_t>(rows) * vocabulary, -3.f, 2.f, random);
        const std::vector<int64_t> found = best_of(scores, rows, dtype);
        for (int row = 0; row < rows; ++row) {
          const auto first = scores.begin() + static_cast<ptrdiff_t>(row) * vocabulary;
          const auto less = [](T a, T b) { return static_cast<float>(a) < static_cast<float>(b); };
          EXPECT_EQ(found[row], std::max_element(first, first + vocabulary, less) - first);
        }
      }
    }
  }
};

TEST_F(BestTokenGpu, RandomScores) {
  check_random<__half>(DataType::kHalf);
  check_random<__nv_bfloat16>(DataType::kBFloat16);
}

TEST_F(BestTokenGpu, EqualScoresInfinitiesAndNan) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const auto best = [&](const std::vector<float>& scores) {
    std::vector<__half> halves;
    for (const float score : scores) halves.push_back(__float2half(score));
    return best_of(halves, 1, DataType::kHalf)[0];
  };
  EXPECT_EQ(best(std::vector<float>(32000, -1.f)), 0);
  EXPECT_EQ(best({-1.f, -0.f, 0.f, -2.f}), 1);
  EXPECT_EQ(best({-inf, -inf, -65504.f}), 2);
  EXPECT_EQ(best({1.f, inf, inf}), 1);
  EXPECT_EQ(best({nan, -inf, nan, -5.f, nan}), 3);
  EXPECT_EQ(best({nan, nan}), 0);
}

TEST_F(BestTokenGpu, RefusesWhatItCannotTake) {
  BestTokenProblem problem = {1, 0, DataType::kHalf};
  EXPECT_NE(check_validity(problem), nullptr);
  problem.vocabulary = 8;
  EXPECT_EQ(launch_best_token(problem, nullptr, nullptr, false, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace awq2trt
