// choose_config() and its companions: pure host code, so all of their promises are checked over a grid of problems.
#include <climits>

#include <gtest/gtest.h>

#include "kernels/w4a16_linear/kernel_params.cuh"
#include "kernels/w4a16_linear/tile_shapes.h"
#include "kernels/w4a16_linear/w4a16_linear.h"
#include "kernels/w4a16_linear/warpgroup_shapes.h"

namespace awq2trt {
namespace {

// Multiprocessors and opt-in shared memory as NVIDIA's CUDA C++ programming guide lists them.
constexpr Device kOrin = {87, 16, 166912};
constexpr Device kRtx3090 = {86, 82, 101376};
constexpr Device kRtx4090 = {89, 128, 101376};
constexpr Device kA100 = {80, 108, 166912};
constexpr Device kH100 = {90, 132, 232448, true};
constexpr Device kH100WithoutWgmma = {90, 132, 232448, false};  // the build or the driver lacks it
constexpr Device kRtx5090 = {120, 170, 101376};
constexpr Device kDevices[] = {kOrin, kRtx3090, kRtx4090, kA100, kH100, kH100WithoutWgmma, kRtx5090};

constexpr int kNs[] = {1, 15, 64, 333, 576, 1024, 4096, 4544, 22016, 32000, 151936};
constexpr int kKs[] = {8, 576, 1536, 4096, 4544, 11008, 28672};
constexpr int kMs[] = {1, 2, 5, 8, 9, 16, 17, 33, 64, 65, 128, 512, 2049, 8192};

GemmProblem problem_of(int m, int n, int k, int group_size = 128) {
  return {m, n, k, group_size, DataType::kHalf, true, false};
}

template <typename Check>
void for_every_problem(Check check) {
  for (const Device& device : kDevices) {
    for (const int n : kNs) {
      for (const int k : kKs) {
        for (const int m : kMs) {
          SCOPED_TRACE("sm_" + std::to_string(device.sm) + " M " + std::to_string(m) + " N " + std::to_string(n) +
                       " K " + std::to_string(k));
          check(problem_of(m, n, k), device);
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(ChooseConfig, FewTokensDecodeAndManyTile) {
  EXPECT_EQ(choose_config(problem_of(1, 12288, 4096), kH100).kernel, Kernel::kDecode);
  EXPECT_EQ(choose_config(problem_of(8, 4096, 4096), kOrin).kernel, Kernel::kDecode);
  EXPECT_EQ(choose_config(problem_of(9, 4096, 4096), kH100).kernel, Kernel::kTile);
  EXPECT_EQ(choose_config(problem_of(2048, 4096, 4096), kRtx4090).kernel, Kernel::kTile);
}

TEST(ChooseConfig, SmallLayersAreHeldAtOnceWhereLaunchesOverlap) {
  EXPECT_EQ(choose_config(problem_of(1, 4096, 4096), kH100).kernel, Kernel::kDecodeOnce);
  EXPECT_EQ(choose_config(problem_of(8, 4096, 4096), kH100).kernel, Kernel::kDecodeOnce);
  EXPECT_EQ(choose_config(problem_of(1, 4096, 4096), kA100).kernel, Kernel::kDecode);
  EXPECT_EQ(choose_config(problem_of(1, 5120, 5120), kH100).kernel, Kernel::kDecodeOnce) << "320 blocks of 61 KB";
  EXPECT_EQ(choose_config(problem_of(4, 5120, 5120), kH100).kernel, Kernel::kDecode) << "3 x 93 KB do not fit";
  EXPECT_EQ(choose_config(problem_of(8, 4096, 4096), kRtx5090).kernel, Kernel::kTile) << "2 x 107 KB do not fit";
  EXPECT_EQ(choose_config(problem_of(1, 8192, 4096), kH100).kernel, Kernel::kDecode) << "512 blocks";
  EXPECT_EQ(choose_config(problem_of(1, 4096, 8192), kH100).kernel, Kernel::kDecode);
  EXPECT_EQ(choose_config(problem_of(1, 2048, 8192), kH100).kernel, Kernel::kDecodeOnce) << "a block a multiprocessor";
  EXPECT_EQ(choose_config(problem_of(1, 4096, 4096, 64), kH100).kernel, Kernel::kDecode) << "two groups in a unit";
  EXPECT_EQ(choose_config(problem_of(1, 4096, 4088), kH100).kernel, Kernel::kDecode) << "rows off 16 bytes";
}

TEST(ChooseConfig, ManyTokensGetHoppersOwnProductsWhereTheyRun) {
  const KernelConfig config = choose_config(problem_of(512, 28672, 4096), kH100);
  EXPECT_EQ(config.kernel, Kernel::kWarpgroup);
  EXPECT_EQ(config.warpgroup_tile, WarpgroupTile::k256x128);
  EXPECT_EQ(config.workspace_bytes, 0u);
  EXPECT_EQ(choose_config(problem_of(512, 4096, 14336), kH100).warpgroup_tile, WarpgroupTile::k256x64)
      << "64 larger tiles would keep half of the multiprocessors busy";
  EXPECT_EQ(choose_config(problem_of(128, 22016, 4096), kH100).warpgroup_tile, WarpgroupTile::k128x192);
  EXPECT_EQ(choose_config(problem_of(512, 28672, 4096, 32), kH100).kernel, Kernel::kWarpgroup);
  EXPECT_EQ(choose_config(problem_of(64, 22016, 4096), kH100).kernel, Kernel::kTile) << "too few tokens";
  EXPECT_EQ(choose_config(problem_of(512, 28671, 4096), kH100).kernel, Kernel::kTile) << "rows of y off 16 bytes";
  EXPECT_EQ(choose_config(problem_of(512, 28672, 4088), kH100).kernel, Kernel::kTile) << "rows of codes off 16 bytes";
  EXPECT_EQ(choose_config(problem_of(512, 28672, 4096, 48), kH100).kernel, Kernel::kAnyGroup);
  EXPECT_EQ(choose_config(problem_of(512, 28672, 4096), kH100WithoutWgmma).kernel, Kernel::kTile);
  EXPECT_EQ(choose_config(problem_of(512, 28672, 4096), kRtx4090).kernel, Kernel::kTile);
}

TEST(ChooseConfig, WarpgroupsFallBackToATileWithoutAWorkspace) {
  const KernelConfig config = choose_config(problem_of(512, 4096, 4160), kH100);
  ASSERT_EQ(config.kernel, Kernel::kWarpgroup);
  EXPECT_EQ(config.tile, TileShape::k128x128);
  EXPECT_EQ(config.splits, 1);
  EXPECT_EQ(config.k_per_split, 4224) << "all of K, in whole stages";
}

TEST(ChooseConfig, DecodeNeedsRoomForItsActivations) {
  const KernelConfig two = choose_config(problem_of(4, 4096, 11008), kH100);
  EXPECT_EQ(two.kernel, Kernel::kDecode);
  EXPECT_EQ(two.rows_per_block, 16) << "4096 rows over 2 x 132 blocks";
  EXPECT_EQ(choose_config(problem_of(8, 4096, 11008), kH100).kernel, Kernel::kTile) << "2 x 176 KB do not fit";
  const KernelConfig lone = choose_config(problem_of(1, 8192, 28672), kRtx4090);
  EXPECT_EQ(lone.kernel, Kernel::kDecode) << "2 x 57 KB do not fit, one does";
  EXPECT_EQ(lone.rows_per_block, 64) << "8192 rows over 128 blocks";
}

TEST(ChooseConfig, PromptsGetTheLargeTile) {
  for (const Device& device : kDevices) {
    const KernelConfig config = choose_config(problem_of(2048, 22016, 4096), device);
    EXPECT_EQ(config.tile, TileShape::k128x128);
    if (device.wgmma) EXPECT_EQ(config.warpgroup_tile, WarpgroupTile::k256x128);
  }
}

TEST(ChooseConfig, GroupsThatSplitALoadGoToTheGeneralKernel) {
  EXPECT_EQ(choose_config(problem_of(1, 64, 4096, 48), kH100).kernel, Kernel::kAnyGroup);
  EXPECT_EQ(choose_config(problem_of(1, 64, 4096, 16), kH100).kernel, Kernel::kAnyGroup);
  EXPECT_EQ(choose_config(problem_of(1, 64, 4096, 32), kH100).kernel, Kernel::kDecode);
  EXPECT_EQ(choose_config(problem_of(1, 64, 1000, 1000), kH100).kernel, Kernel::kDecode) << "whole row";
}

TEST(ChooseConfig, FitsTheDevice) {
  for_every_problem([](const GemmProblem& problem, const Device& device) {
    const KernelConfig config = choose_config(problem, device);
    if (config.kernel == Kernel::kDecode) {
      const DecodeShared shared(problem.m, problem.k, config.rows_per_block, config.warps);
      ASSERT_LE(shared.bytes, static_cast<size_t>(device.max_shared_bytes));
      ASSERT_EQ(config.rows_per_block % 16, 0);
      ASSERT_GT(config.rows_per_block, 0);
    } else if (config.kernel == Kernel::kDecodeOnce) {
      ASSERT_LE(DecodeOnceShared(problem.m, problem.k).bytes, static_cast<size_t>(device.max_shared_bytes));
      // The workspace that the decode kernel needs, which is used where codes are not aligned.
      ASSERT_EQ(config.rows_per_block, 16);
      ASSERT_LE(DecodeShared(problem.m, problem.k, 16, config.warps).bytes,
                static_cast<size_t>(device.max_shared_bytes));
    } else if (config.kernel == Kernel::kWarpgroup) {
      ASSERT_TRUE(device.wgmma);
      ASSERT_LE(traits_of(config.warpgroup_tile).shared_bytes(), static_cast<size_t>(device.max_shared_bytes));
      ASSERT_EQ(problem.k % 32, 0);
      ASSERT_EQ(problem.n % 8, 0);
    } else {
      ASSERT_EQ(config.kernel, Kernel::kTile);
      ASSERT_LE(traits_of(config.tile).shared_bytes(), static_cast<size_t>(device.max_shared_bytes));
      ASSERT_LE(traits_of(config.tile).min_sm, device.sm);
    }
    ASSERT_EQ(config.overlap, device.sm >= 90);
  });
}

TEST(ChooseConfig, SplitsCoverKOnce) {
  for_every_problem([](const GemmProblem& problem, const Device& device) {
    const KernelConfig config = choose_config(problem, device);
    if (config.kernel != Kernel::kTile) return;
    ASSERT_EQ(config.k_per_split % 128, 0);
    ASSERT_GE(int64_t{config.splits} * config.k_per_split, problem.k);
    ASSERT_LT(int64_t{config.splits - 1} * config.k_per_split, problem.k) << "the last split is empty";
  });
}

TEST(ChooseConfig, WorkspaceStaysInItsBoundForFewerTokensToo) {
  for_every_problem([](const GemmProblem& problem, const Device& device) {
    const size_t bound = workspace_bound(problem);
    for (const int m : kMs) {
      if (m > problem.m) continue;
      GemmProblem fewer = problem;
      fewer.m = m;
      ASSERT_LE(choose_config(fewer, device).workspace_bytes, bound) << "M = " << m;
    }
  });
}

TEST(ChooseConfig, IsPure) {
  const KernelConfig a = choose_config(problem_of(33, 1024, 8192), kRtx4090);
  const KernelConfig b = choose_config(problem_of(33, 1024, 8192), kRtx4090);
  EXPECT_EQ(a.tile, b.tile);
  EXPECT_EQ(a.splits, b.splits);
  EXPECT_GT(a.splits, 1) << "8 tiles on 128 multiprocessors";
}

TEST(CheckValidity, NamesWhatIsWrong) {
  EXPECT_EQ(check_validity(problem_of(1, 1, 8)), nullptr);
  EXPECT_EQ(check_validity(problem_of(0, 1, 8)), nullptr) << "no tokens is no error";
  EXPECT_STREQ(check_validity(problem_of(1, 1, 12)), "the number of input features K must be a positive multiple of 8");
  EXPECT_STREQ(check_validity(problem_of(1, 0, 8)), "the number of output features N must be at least 1");
  EXPECT_STREQ(check_validity(problem_of(1, 1, 8, 0)), "group_size must be at least 1");
  EXPECT_NE(check_validity(problem_of(-1, 1, 8)), nullptr);
  EXPECT_NE(check_validity(problem_of(1, 1, 1 << 21)), nullptr);
}

TEST(GemmProblem, LastGroupMayBeShort) {
  EXPECT_EQ(problem_of(1, 1, 576, 128).groups(), 5);
  EXPECT_EQ(problem_of(1, 1, 512, 128).groups(), 4);
  EXPECT_EQ(problem_of(1, 1, 576, INT_MAX).groups(), 1);
}

}  // namespace
}  // namespace awq2trt
