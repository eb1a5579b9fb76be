// Compares rows of a table of codes on a GPU with the definition: every number is rounded once, so they must be equal
// bit for bit.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/gpu_test.h"
#include "kernels/quantized_embedding/quantized_embedding.h"

namespace awq2trt {
namespace {

int code_at(const std::vector<uint8_t>& packed, int bits, size_t index) {
  if (bits == 8) return static_cast<int8_t>(packed[index]);
  const int nibble = index % 2 == 0 ? packed[index / 2] & 0xf : packed[index / 2] >> 4;
  return nibble < 8 ? nibble : nibble - 16;
}

class QuantizedEmbeddingGpu : public GpuTest {
 protected:
  template <typename T>
  void check(const EmbeddingProblem& p) {
    SCOPED_TRACE(std::to_string(p.code_bits) + " bits, " + std::to_string(p.rows) + " of " +
                 std::to_string(p.vocabulary) + " x " + std::to_string(p.width) + ", g " +
                 std::to_string(p.group_size) + (p.has_zeros ? ", zeros" : ""));
    ASSERT_EQ(check_validity(p), nullptr);
    std::mt19937 random(test_seed());
    const size_t groups = static_cast<size_t>(p.vocabulary) * p.groups(), outputs = size_t{1} * p.rows * p.width;
    const auto bytes = [&](size_t codes) {
      std::vector<uint8_t> values((codes * p.code_bits + 7) / 8);
      for (uint8_t& value : values) value = static_cast<uint8_t>(random());
      return values;
    };
    const std::vector<uint8_t> codes = bytes(static_cast<size_t>(p.vocabulary) * p.width), zeros = bytes(groups);
    const std::vector<T> scales = random_normal<T>(groups, 0.01f, 0.002f, random);
    std::vector<int64_t> ids(p.rows);
    for (int64_t& id : ids) id = random() % p.vocabulary;
    ids.back() = p.vocabulary - 1;
    const DeviceArray<uint8_t> d_codes(codes), d_zeros(zeros);
    const DeviceArray<T> d_scales(scales), y(outputs);
    const DeviceArray<int64_t> d_ids(ids);
    ASSERT_CUDA(cudaMemset(y.get(), 0xff, outputs * sizeof(T)));
    ASSERT_CUDA(launch_quantized_embedding(
        p, {d_scales.get(), d_codes.get(), d_ids.get(), p.has_zeros ? d_zeros.get() : nullptr, y.get()},
        device_.sm >= 90, nullptr));
    ASSERT_CUDA(cudaDeviceSynchronize());
    std::vector<T> want(outputs);
    for (size_t i = 0; i < outputs; ++i) {
      const size_t id = ids[i / p.width], k = i % p.width, group = id * p.groups() + k / p.group_size;
      const int step =
          code_at(codes, p.code_bits, id * p.width + k) - (p.has_zeros ? code_at(zeros, p.code_bits, group) : 0);
      want[i] = static_cast<T>(static_cast<float>(scales[group]) * static_cast<float>(step));
    }
    const std::vector<T> got = y.host();
    for (size_t i = 0; i < outputs; ++i) {
      ASSERT_EQ(static_cast<float>(got[i]), static_cast<float>(want[i])) << "output " << i;
    }
  }
};

TEST_F(QuantizedEmbeddingGpu, EveryWidthOfCodes) {
  for (const int bits : {4, 8}) {
    for (const bool has_zeros : {false, true}) {
      for (const int rows : {1, 7}) {
        check<__half>({rows, 333, 576, 128, bits, DataType::kHalf, has_zeros});
        check<__nv_bfloat16>({rows, 11, 4096, 32, bits, DataType::kBFloat16, has_zeros});
        check<__half>({rows, 5, 24, 7, bits, DataType::kHalf, has_zeros});  // groups that end anywhere
      }
    }
  }
}

TEST_F(QuantizedEmbeddingGpu, AnIdThatIsNoRowGivesZeros) {
  const EmbeddingProblem p = {3, 4, 8, 8, 8, DataType::kHalf, false};
  const DeviceArray<uint8_t> codes(std::vector<uint8_t>(32, 1));
  const DeviceArray<__half> scales(std::vector<__half>(4, __float2half(2.f))), y(24);
  const DeviceArray<int64_t> ids(std::vector<int64_t>{-1, 3, 4});
  ASSERT_CUDA(launch_quantized_embedding(p, {scales.get(), codes.get(), ids.get(), nullptr, y.get()}, false, nullptr));
  const std::vector<__half> got = y.host();
  for (int i = 0; i < 24; ++i) EXPECT_EQ(static_cast<float>(got[i]), i / 8 == 1 ? 2.f : 0.f) << i;
}

TEST_F(QuantizedEmbeddingGpu, RefusesWhatItCannotTake) {
  const EmbeddingProblem p = {1, 4, 8, 8, 8, DataType::kHalf, false};
  EXPECT_EQ(launch_quantized_embedding(p, {}, false, nullptr), cudaErrorInvalidValue);
  EmbeddingProblem narrow = p;
  narrow.code_bits = 3;
  EXPECT_STREQ(check_validity(narrow), "codes must have 4 or 8 bits");
  narrow = p;
  narrow.width = 12;
  EXPECT_STREQ(check_validity(narrow), "rows must be a positive multiple of 8 wide");
}

}  // namespace
}  // namespace awq2trt
