// FusedLinear on a GPU: against its definition in fp64, and to the bit against the operators that it is made of, one
// after the other. Outputs are poisoned with NaN.
#include "kernels/fused_linear/random_problem.h"
#include "kernels/w4a16_linear/kernel_params.cuh"

namespace awq2trt {
namespace {

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), sizeof(T) * a.size()) == 0;
}

double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

// Whether every sum is added in the order of the operators apart (fused_linear.h).
bool is_in_order(const FusedLinearProblem& p, const FusedLinearConfig& config) {
  const bool by_tiles = config.epilogue_inside && p.gated && config.linear.kernel == Kernel::kDecode;
  return !by_tiles || (p.linear.k + 127) / 128 % 2 == 0;
}

class FusedLinearGpu : public GpuTest {
 protected:
  template <typename T>
  void check_typed(const FusedLinearProblem& p, const FusedLinearConfig& config, bool with_reference,
                   int unaligned_bytes) {
    SCOPED_TRACE(name_of(p) + " kernel " + std::to_string(static_cast<int>(config.linear.kernel)) +
                 (config.norm_inside ? " norm inside" : "") + (config.epilogue_inside ? " epilogue inside" : ""));
    ASSERT_EQ(check_validity(p), nullptr);
    const RandomProblem<T> problem(p, unaligned_bytes);
    const std::vector<T> apart = problem.apart(config.linear);
    const DeviceArray<uint8_t> workspace(config.workspace_bytes);
    std::vector<T> first;
    for (int call = 0; call < 2; ++call) {
      problem.poison();
      ASSERT_CUDA(launch_fused_linear(p, config, problem.tensors(workspace.get()), nullptr));
      ASSERT_CUDA(cudaDeviceSynchronize());
      if (call == 0) first = problem.y->host();
    }
    EXPECT_TRUE(same_bits(first, problem.y->host())) << "two calls differ";
    if (is_in_order(p, config)) {
      EXPECT_TRUE(same_bits(first, apart)) << "other bits than the operators one after the other";
    }
    const double tolerance = p.linear.dtype == DataType::kHalf ? 3e-3 : 2.4e-2;  // three roundings, with room
    EXPECT_LT(relative_error(widened(first), widened(apart)), tolerance);
    if (with_reference) {
      EXPECT_LT(relative_error(widened(first), problem.expected()), tolerance);
    }
    if (p.has_norm && p.norm.has_residual) {
      EXPECT_TRUE(same_bits(problem.sum->host(), problem.rounded_sums())) << "the sum";
    }
  }

  void check(const FusedLinearProblem& p, const FusedLinearConfig& config, bool with_reference = true,
             int unaligned_bytes = 0) {
    if (p.linear.dtype == DataType::kHalf) {
      check_typed<__half>(p, config, with_reference, unaligned_bytes);
    } else {
      check_typed<__nv_bfloat16>(p, config, with_reference, unaligned_bytes);
    }
  }

  void check(const FusedLinearProblem& p) { check(p, choose_config(p, device_)); }
};

TEST_F(FusedLinearGpu, EveryCombinationOfParts) {
  int flags = 0;
  for (const DataType dtype : kTypes) {
    for (const int k : {576, 1000, 2048}) {  // half a step behind whole ones, rows off 16 bytes, whole steps
      for (const int m : {1, 2, 8, 9}) {
        flags += 1;  // so that every part meets every flag
        for (const Parts& parts : {kRms, kRmsResidual, kLayer, kLayerEverything, kGate, kNormAndGate, kLayerAndGate,
                                   kGelu, kAddend, kReluAndAddend, kLayerAndGelu, kEverything}) {
          const int n = parts.activation || parts.addend ? 304 : 333;
          check(problem_of({m, n, k, 128}, parts, dtype, flags & 1, flags & 2));
          flags += 3;
        }
      }
    }
  }
}

TEST_F(FusedLinearGpu, EveryActivation) {
  for (const DataType dtype : kTypes) {
    for (int kind = 0; kind <= static_cast<int>(Activation::kRelu); ++kind) {
      Parts parts = kNormAndGate;
      parts.kind = static_cast<Activation>(kind);
      for (const int m : {1, 5, 9}) check(problem_of({m, 336, 2048, 128}, parts, dtype, true, true));
      parts.gated = false;
      for (const int m : {1, 5, 9}) check(problem_of({m, 328, 2048, 128}, parts, dtype, true, true));
    }
  }
}

TEST_F(FusedLinearGpu, EveryNumberOfTokens) {
  for (const DataType dtype : kTypes) {
    for (const int m : {1, 2, 3, 5, 8, 9, 64, 600}) {
      check(problem_of({m, 400, 576, 64}, kNormAndGate, dtype, true, true));
      check(problem_of({m, 400, 576, 576}, kLayerAndGate, dtype, true, false));
      check(problem_of({m, 392, 576, 64}, kEverything, dtype, true, true));
      check(problem_of({m, 392, 1088, 128}, kReluAndAddend, dtype, true, true));
      check(problem_of({m, 403, 1088, 128}, kLayerEverything, dtype, false, true));
    }
  }
}

// Tiles of gates and up with tokens and rows to spare, and with fewer than a tile has.
TEST_F(FusedLinearGpu, EveryWarpgroupTile) {
  if (!device_.wgmma) GTEST_SKIP() << "wgmma is Hopper's alone, and the build must be for it";
  int flags = 0;
  for (const DataType dtype : kTypes) {
    for (int tile = 0; tile < static_cast<int>(WarpgroupTile::kCount); ++tile) {
      for (const Parts& parts : {kGate, kNormAndGate, kAddend, kGelu, kReluAndAddend, kLayerAndGelu, kEverything}) {
        for (const auto& [m, n] : {std::pair(70, 16), {70, 400}, {300, 208}}) {
          for (const int group_size : {32, 128}) {
            const FusedLinearProblem p = problem_of({m, n, 608, group_size}, parts, dtype, flags & 1, flags & 2);
            FusedLinearConfig config = choose_config(p, device_);
            config.linear = {};
            config.linear.kernel = Kernel::kWarpgroup;
            config.linear.warpgroup_tile = static_cast<WarpgroupTile>(tile);
            config.linear.tile = TileShape::k128x128;
            config.linear.splits = 1;
            config.linear.k_per_split = 640;
            config.linear.overlap = true;
            config.epilogue_inside = true;
            check(p, config);
            check(p, config, true, 4);  // codes off 16 bytes: apart, by the tile kernel
            flags += 1;
          }
        }
      }
    }
  }
}

// Both kernels for few tokens, whichever the device would choose, and as many blocks of them as there are tiles.
TEST_F(FusedLinearGpu, BothDecodeKernels) {
  int flags = 0;
  for (const DataType dtype : kTypes) {
    // Fewer steps than warps, tails of a step and of a round of warps, and rows whose norm takes several rounds.
    for (const int k : {32, 288, 1536, 2080, 4096, 5120, 11008, 16384}) {
      for (const int group_size : {128, 384, kWholeRow}) {
        for (const Kernel kernel : {Kernel::kDecode, Kernel::kDecodeOnce}) {
          flags += 1;  // so that every part meets every flag
          for (const Parts& parts : {kRmsResidual, kLayerEverything, kGate, kNormAndGate, kLayerAndGate, kAddend,
                                     kLayerAndGelu, kEverything}) {
            for (const int m : {1, 7}) {
              const size_t bytes =
                  kernel == Kernel::kDecodeOnce ? DecodeOnceShared(m, k).bytes : DecodeShared(m, k, 32, 8).bytes;
              if (bytes > static_cast<size_t>(device_.max_shared_bytes)) continue;
              // The last tile of 16 rows is not whole, except with gates, whose tiles are as wide as y must be.
              const bool gated = parts.activation && parts.gated;
              const int n = gated ? 48 : parts.activation || parts.addend ? 40 : 47;
              const FusedLinearProblem p = problem_of({m, n, k, group_size}, parts, dtype, flags & 1, flags & 2);
              FusedLinearConfig config = choose_config(p, device_);
              config.linear.kernel = kernel;
              config.linear.splits = 1;
              config.linear.rows_per_block = kernel == Kernel::kDecode && flags % 4 < 2 ? 32 : 16;
              config.linear.warps = 8;
              config.norm_inside = p.has_norm && m == 1;
              config.epilogue_inside = p.has_activation || p.has_addend;
              check(p, config);
              flags += 1;
            }
          }
        }
      }
    }
  }
}

TEST_F(FusedLinearGpu, ShapesOfRealModelsInTheBitsOfTheOperatorsApart) {
  for (const int m : {1, 2, 8, 200}) {
    for (const Sizes& s :
         {Sizes{m, 22016, 4096, 128}, {m, 28672, 4096, 128}, {m, 27648, 5120, 128}, {m, 3072, 576, 64}}) {
      const FusedLinearProblem p = problem_of(s, kNormAndGate, DataType::kHalf, true, false);
      check(p, choose_config(p, device_), false);
    }
    // Falcon-7B's o, and up with its activation; MPT-7B's up with norm and activation.
    FusedLinearProblem p = problem_of({m, 4544, 4544, 128}, kAddend, DataType::kHalf, true, false);
    check(p, choose_config(p, device_), false);
    p = problem_of({m, 18176, 4544, 128}, kGelu, DataType::kHalf, true, false);
    check(p, choose_config(p, device_), false);
    p = problem_of({m, 16384, 4096, 128}, kLayerAndGelu, DataType::kBFloat16, true, true);
    check(p, choose_config(p, device_), false);
    // Falcon-7B's last linear, and Llama-2-13B's.
    p = problem_of({m, 4544, 18176, 128}, kReluAndAddend, DataType::kHalf, true, true);
    check(p, choose_config(p, device_), false);
    p = problem_of({m, 5120, 13824, 128}, kAddend, DataType::kBFloat16, true, false);
    check(p, choose_config(p, device_), false);
    for (const Sizes& s : {Sizes{m, 12288, 4096, 128}, {m, 15360, 5120, 128}, {m, 960, 576, 576}}) {
      p = problem_of(s, kRmsResidual, DataType::kBFloat16, true, true);
      check(p, choose_config(p, device_), false);
    }
  }
}

TEST_F(FusedLinearGpu, CodesThatAreNotAlignedAreComputedWithApart) {
  for (const int m : {1, 3}) {
    const FusedLinearProblem p = problem_of({m, 304, 2048, 128}, kNormAndGate, DataType::kHalf, true, true);
    const FusedLinearConfig config = choose_config(p, device_);
    ASSERT_TRUE(config.epilogue_inside);
    check(p, config, true, 4);
    const FusedLinearProblem added = problem_of({m, 304, 2048, 128}, kEverything, DataType::kHalf, true, true);
    ASSERT_TRUE(choose_config(added, device_).epilogue_inside);
    check(added, choose_config(added, device_), true, 4);
  }
}

// Blocks with more outputs than threads: a thread's second addend is loaded late.
TEST_F(FusedLinearGpu, BlocksWithMoreOutputsThanThreads) {
  for (const auto& [m, rows_per_block] : {std::pair(1, 400), {8, 80}}) {
    const FusedLinearProblem p = problem_of({m, 760, 512, 128}, kReluAndAddend, DataType::kHalf, true, true);
    FusedLinearConfig config = choose_config(p, device_);
    config.linear.kernel = Kernel::kDecode, config.linear.splits = 1;
    config.linear.rows_per_block = rows_per_block, config.linear.warps = 8;
    config.epilogue_inside = true;
    check(p, config);
  }
}

// A chain in which each layer reads what the last one wrote, captured in a graph, with overlap and without.
TEST_F(FusedLinearGpu, LaunchesThatOverlapSeeWhatTheOneBeforeWrote) {
  constexpr int kFeatures = 512, kLayers = 12;
  for (const Kernel kernel : {Kernel::kDecode, Kernel::kDecodeOnce}) {
    const FusedLinearProblem p =
        problem_of({1, 2 * kFeatures, kFeatures, 128}, kNormAndGate, DataType::kHalf, true, false);
    const RandomProblem<__half> problem(p);
    FusedLinearConfig config = choose_config(p, device_);
    config.linear.kernel = kernel, config.linear.rows_per_block = 16, config.linear.warps = 8;
    config.norm_inside = config.epilogue_inside = true;
    const DeviceArray<uint8_t> workspace(config.workspace_bytes);
    const DeviceArray<__half> other_y(kFeatures), other_sum(kFeatures);
    cudaStream_t stream = nullptr;
    ASSERT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const auto enqueue = [&] {
      FusedLinearTensors tensors = problem.tensors(workspace.get());
      for (int layer = 0; layer < kLayers; ++layer) {
        tensors.y = layer % 2 == 0 ? problem.y->get() : other_y.get();
        tensors.sum = layer % 2 == 0 ? problem.sum->get() : other_sum.get();
        ASSERT_CUDA(launch_fused_linear(p, config, tensors, stream));
        tensors.x = tensors.y, tensors.residual = tensors.sum;
      }
    };
    config.linear.overlap = false;
    enqueue();
    ASSERT_CUDA(cudaStreamSynchronize(stream));
    const std::vector<__half> expected_y = other_y.host(), expected_sum = other_sum.host();
    config.linear.overlap = device_.sm >= 90;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    enqueue();
    ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
    ASSERT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    for (int repetition = 0; repetition < 10; ++repetition) {
      ASSERT_CUDA(cudaMemset(other_y.get(), 0xff, sizeof(__half) * kFeatures));
      ASSERT_CUDA(cudaMemset(other_sum.get(), 0xff, sizeof(__half) * kFeatures));
      ASSERT_CUDA(cudaDeviceSynchronize());
      ASSERT_CUDA(cudaGraphLaunch(executable, stream));
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      ASSERT_TRUE(same_bits(other_y.host(), expected_y)) << "kernel " << static_cast<int>(kernel);
      ASSERT_TRUE(same_bits(other_sum.host(), expected_sum)) << "kernel " << static_cast<int>(kernel);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

TEST_F(FusedLinearGpu, RefusesWhatItCannotTake) {
  const FusedLinearProblem good = problem_of({1, 304, 512, 128}, kNormAndGate, DataType::kHalf, true, true);
  const RandomProblem<__half> problem(good);
  const FusedLinearConfig config = choose_config(good, device_);
  const DeviceArray<uint8_t> workspace(config.workspace_bytes);
  const FusedLinearTensors tensors = problem.tensors(workspace.get());
  ASSERT_CUDA(launch_fused_linear(good, config, tensors, nullptr));
  FusedLinearProblem bad = good;
  bad.activation.width = 304;
  EXPECT_EQ(launch_fused_linear(bad, config, tensors, nullptr), cudaErrorInvalidValue);
  bad = good;
  bad.linear.m = bad.norm.rows = bad.activation.rows = 0;
  EXPECT_EQ(launch_fused_linear(bad, config, FusedLinearTensors{}, nullptr), cudaSuccess) << "nothing to do";
  bad = problem_of({2, 304, 512, 128}, kNormAndGate, DataType::kHalf, true, true);
  EXPECT_EQ(launch_fused_linear(bad, config, tensors, nullptr), cudaErrorInvalidValue) << "two tokens' norm inside";
  FusedLinearTensors wrong = tensors;
  wrong.gain = nullptr;
  EXPECT_EQ(launch_fused_linear(good, config, wrong, nullptr), cudaErrorInvalidValue);
  wrong = tensors;
  wrong.workspace = nullptr;
  EXPECT_EQ(launch_fused_linear(good, config, wrong, nullptr), cudaErrorInvalidValue);
  wrong = tensors;
  wrong.x = problem.d_x->get() + 1;
  EXPECT_EQ(launch_fused_linear(good, config, wrong, nullptr), cudaErrorMisalignedAddress);
  const FusedLinearProblem sum = problem_of({1, 304, 512, 128}, kEverything, DataType::kHalf, true, true);
  const RandomProblem<__half> of_sum(sum);
  const FusedLinearConfig config_of_sum = choose_config(sum, device_);
  const FusedLinearTensors right = of_sum.tensors(workspace.get());
  ASSERT_CUDA(launch_fused_linear(sum, config_of_sum, right, nullptr));
  wrong = right, wrong.addend = nullptr;
  EXPECT_EQ(launch_fused_linear(sum, config_of_sum, wrong, nullptr), cudaErrorInvalidValue);
  wrong = right, wrong.addend = of_sum.d_addend->get() + 1;
  EXPECT_EQ(launch_fused_linear(sum, config_of_sum, wrong, nullptr), cudaErrorMisalignedAddress);
  for (const void* const written : {right.y, right.sum}) {
    wrong = right, wrong.addend = written;
    EXPECT_EQ(launch_fused_linear(sum, config_of_sum, wrong, nullptr), cudaErrorInvalidValue) << "would be overwritten";
  }
  for (const void* const read : {tensors.x, tensors.residual}) {
    wrong = tensors;
    wrong.sum = const_cast<void*>(read);
    EXPECT_EQ(launch_fused_linear(good, config, wrong, nullptr), cudaErrorInvalidValue) << "the sum over what is read";
  }
}

}  // namespace
}  // namespace awq2trt
