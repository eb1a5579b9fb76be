// What of a FusedLinear is computed inside its linear's kernel, and the workspace of the rest: pure host code.
#include <gtest/gtest.h>

#include "kernels/fused_linear/fused_linear.h"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

constexpr Device kOrin = {87, 16, 166912, false};
constexpr Device kH100 = {90, 132, 232448, true};

FusedLinearProblem problem_of(int m, int n, int k, int group_size = 128) {
  constexpr DataType kType = DataType::kHalf;
  FusedLinearProblem p = {};
  p.linear = {m, n, k, group_size, kType, true, false};
  p.has_norm = p.has_activation = p.gated = true;
  p.norm = {m, k, 1e-5F, true, true, false, kType};
  p.activation = {m, n / 2, Activation::kSilu, kType};
  return p;
}

TEST(FusedLinearConfig, OneTokensNormAndEightTokensActivationsAreInside) {
  for (const Device& device : {kOrin, kH100}) {
    for (const auto& [n, k] : {std::pair(22016, 4096), {3072, 576}}) {
      for (const int m : {1, 2, 8, 9, 600}) {
        const FusedLinearConfig config = choose_config(problem_of(m, n, k), device);
        EXPECT_EQ(config.norm_inside, m == 1) << m;
        const bool many = m == 600 && device.wgmma;  // the warpgroup kernel's
        EXPECT_EQ(config.epilogue_inside, m <= 8 || many) << m;
        EXPECT_EQ(config.linear.kernel, choose_config(problem_of(m, n, k).linear, device).kernel);
        EXPECT_EQ(config.linear.rows_per_block, choose_config(problem_of(m, n, k).linear, device).rows_per_block)
            << "other rows, other sums";
      }
    }
  }
}

TEST(FusedLinearConfig, WhatIsNotThereIsNotInside) {
  FusedLinearProblem p = problem_of(1, 4096, 4096);
  p.has_norm = false;
  EXPECT_FALSE(choose_config(p, kH100).norm_inside);
  EXPECT_TRUE(choose_config(p, kH100).epilogue_inside);
  p = problem_of(1, 4096, 4096);
  p.has_activation = p.gated = false;
  EXPECT_TRUE(choose_config(p, kH100).norm_inside);
  EXPECT_FALSE(choose_config(p, kH100).epilogue_inside);
  p.has_addend = true;
  EXPECT_TRUE(choose_config(p, kH100).epilogue_inside);
}

TEST(FusedLinearConfig, CodesAndGroupsThatTheKernelsHaveNoVariantsForAreApart) {
  for (const Device& device : {kOrin, kH100}) {
    for (const FusedLinearProblem& p : {problem_of(1, 4096, 4096, 64), problem_of(1, 4096, 4096, 48),
                                        problem_of(1, 4096, 1000), problem_of(1, 1 << 20, 1 << 14)}) {
      const FusedLinearConfig config = choose_config(p, device);
      EXPECT_FALSE(config.norm_inside);
      EXPECT_FALSE(config.epilogue_inside);
    }
    EXPECT_TRUE(choose_config(problem_of(1, 4096, 576, 576), device).norm_inside) << "one group";
    EXPECT_TRUE(choose_config(problem_of(1, 4096, 4096, 256), device).norm_inside);
  }
}

TEST(FusedLinearConfig, TheBoundOfTheWorkspaceHoldsForEveryNumberOfTokens) {
  for (const auto& [n, k] : {std::pair(22016, 4096), {3072, 576}, {64, 8192}}) {
    const size_t bound = workspace_bound(problem_of(600, n, k));
    for (const Device& device : {kOrin, Device{90, 132, 232448, false}}) {
      for (int m = 0; m <= 600; ++m) {
        const FusedLinearConfig config = choose_config(problem_of(m, n, k), device);
        ASSERT_LE(config.workspace_bytes, bound) << m;
        ASSERT_GE(config.workspace_bytes, size_t{2} * m * (n + k) + config.linear.workspace_bytes) << m;
      }
    }
  }
}

TEST(FusedLinearConfig, OnlyGatesNeedRoomForTheLinearsOutputs) {
  FusedLinearProblem p = problem_of(600, 22016, 4096);
  const size_t gated = workspace_bound(p);
  p.gated = false, p.has_addend = true, p.activation.width = 22016;
  ASSERT_EQ(check_validity(p), nullptr);
  EXPECT_EQ(gated - workspace_bound(p), size_t{2} * 600 * 22016);
}

TEST(FusedLinearConfig, PartsThatDoNotFitEachOtherAreInvalid) {
  EXPECT_EQ(check_validity(problem_of(1, 64, 128)), nullptr);
  FusedLinearProblem p = problem_of(1, 64, 128);
  p.has_norm = p.has_activation = p.gated = false;
  EXPECT_NE(check_validity(p), nullptr);
  p = problem_of(1, 64, 128);
  p.norm.rows = 2;
  EXPECT_NE(check_validity(p), nullptr);
  p = problem_of(1, 64, 128);
  p.norm.dtype = DataType::kBFloat16;
  EXPECT_NE(check_validity(p), nullptr);
  p = problem_of(1, 64, 128);
  p.activation.width = 64;
  EXPECT_NE(check_validity(p), nullptr);
  p.gated = false;
  EXPECT_EQ(check_validity(p), nullptr) << "all outputs are activated";
  p.has_addend = true;
  EXPECT_EQ(check_validity(p), nullptr);
  p.gated = true, p.activation.width = 32;
  EXPECT_NE(check_validity(p), nullptr) << "gates exclude an addend";
  p.has_addend = p.has_activation = false;
  EXPECT_NE(check_validity(p), nullptr) << "gates without an activation";
  p = problem_of(1, 44, 128);
  p.has_activation = p.gated = false, p.has_addend = true;
  EXPECT_NE(check_validity(p), nullptr) << "an addend whose width is no multiple of 8";
  EXPECT_NE(check_validity(problem_of(1, 40, 128)), nullptr) << "half of N is no multiple of 8";
  EXPECT_NE(check_validity(problem_of(1, 64, 32768)), nullptr) << "too wide for a norm";
}

}  // namespace
}  // namespace awq2trt
