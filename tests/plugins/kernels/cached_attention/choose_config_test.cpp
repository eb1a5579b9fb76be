// Which attention kernel computes a call: pure host code.
#include <gtest/gtest.h>

#include "kernels/cached_attention/cached_attention.h"

namespace awq2trt {
namespace {

constexpr Device kOrin = {87, 16, 166912, false};
constexpr Device kH100 = {90, 132, 232448, true};
constexpr Device kH100WithoutWgmma = {90, 132, 232448, false};  // the build or the driver lacks it

AttentionProblem problem_of(int tokens, int head_dim = 128) {
  AttentionProblem p = {};
  p.batch = 1, p.tokens = tokens, p.heads = 32, p.kv_heads = 8, p.head_dim = head_dim, p.capacity = 4096;
  p.rotary_dim = head_dim, p.scale = 0.1f;
  return p;
}

AttentionKernel kernel_of(const AttentionProblem& problem, const Device& device = kH100) {
  return choose_config(problem, device).kernel;
}

TEST(ChooseAttention, TokensDecide) {
  EXPECT_EQ(kernel_of(problem_of(1)), AttentionKernel::kDecode);
  EXPECT_EQ(kernel_of(problem_of(8)), AttentionKernel::kDecodeTiled);
  EXPECT_EQ(kernel_of(problem_of(16)), AttentionKernel::kPrefill);
  EXPECT_EQ(kernel_of(problem_of(63)), AttentionKernel::kPrefill);
  EXPECT_EQ(kernel_of(problem_of(64)), AttentionKernel::kPrefillHopper);
}

TEST(ChooseAttention, HoppersProductsAreForPlainScoresOfTwoHeadSizes) {
  EXPECT_EQ(kernel_of(problem_of(512, 64)), AttentionKernel::kPrefillHopper);
  for (const int head_dim : {80, 96, 112, 256})
    EXPECT_EQ(kernel_of(problem_of(512, head_dim)), AttentionKernel::kPrefill) << head_dim;
  for (const Device& device : {kOrin, kH100WithoutWgmma})
    EXPECT_EQ(kernel_of(problem_of(512), device), AttentionKernel::kPrefill) << device.sm;

  AttentionProblem p = problem_of(512);
  p.window = 100;
  EXPECT_EQ(kernel_of(p), AttentionKernel::kPrefillHopper);
  p.softcap = 50.f;
  EXPECT_EQ(kernel_of(p), AttentionKernel::kPrefill);
  p = problem_of(512);
  p.has_alibi = true;
  EXPECT_EQ(kernel_of(p), AttentionKernel::kPrefill);
  p = problem_of(512);
  p.has_visible_end = true;
  EXPECT_EQ(kernel_of(p), AttentionKernel::kPrefill);
  p = problem_of(512);
  p.cache_type = CacheType::kInt8;
  EXPECT_EQ(kernel_of(p), AttentionKernel::kPrefill);
  p = problem_of(512);
  p.scale = -0.1f;
  EXPECT_EQ(kernel_of(p), AttentionKernel::kPrefill) << "the largest product would be the smallest score";
  p = problem_of(512);
  p.batch = 1024, p.capacity = 1 << 20;
  EXPECT_EQ(kernel_of(p), AttentionKernel::kPrefill) << "rows of the cache beyond an int";
}

TEST(ChooseAttention, WorkspaceStaysInItsBound) {
  for (const Device& device : {kOrin, kH100}) {
    for (const int tokens : {1, 7, 15, 16, 64, 2048}) {
      const AttentionProblem p = problem_of(tokens);
      EXPECT_LE(choose_config(p, device).workspace_bytes, workspace_bound(p)) << tokens;
    }
  }
}

}  // namespace
}  // namespace awq2trt
