// The C++ reference against literal bytes, and against the Python oracle through golden files
// (tests/data/kernels, written by tools/make_kernel_golden.py).
#include "kernels/w4a16_linear/reference.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace awq2trt {
namespace {

TEST(Int4, LowNibbleFirstTwosComplement) {
  const uint8_t packed[] = {0x21, 0xf8, 0x07};
  const int expected[] = {1, 2, -8, -1, 7, 0};
  for (int i = 0; i < 6; ++i) EXPECT_EQ(int4_at(packed, i), expected[i]);
}

TEST(Reference, LiteralLayer) {
  // N = 1, K = 8, G = 4: codes 1..8 as signed nibbles (8 is -8), scales 0.5 and 2, zero points 1 and -2 (0xe).
  const GemmProblem problem = {1, 1, 8, 4, DataType::kHalf, true, true};
  const uint8_t codes[] = {0x21, 0x43, 0x65, 0x87};
  const uint8_t zeros[] = {0xe1};
  const double scales[] = {0.5, 2.0}, bias[] = {100.0};
  const std::vector<double> weights = dequantize_weights(problem, codes, scales, zeros);
  EXPECT_EQ(weights, (std::vector<double>{0.0, 0.5, 1.0, 1.5, 14.0, 16.0, 18.0, -12.0}));
  const double x[] = {1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT_EQ(linear_reference(problem, x, weights, bias), std::vector<double>{139.0});
}

// One file: the magic, eight int32 (version, m, n, k, group_size, has_zeros, has_bias, 0), then codes, zeros (packed
// bytes) and scales, bias, x, y (float64), each only if the header lists it.
struct Golden {
  GemmProblem problem;
  std::vector<uint8_t> codes, zeros;
  std::vector<double> scales, bias, x, y;
};

template <typename T>
std::vector<T> read_array(std::ifstream& file, size_t count) {
  std::vector<T> values(count);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(T)));
  return values;
}

Golden read_golden(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const auto magic = read_array<char>(file, 8);
  EXPECT_EQ(std::memcmp(magic.data(), "W4A16GLD", 8), 0) << path;
  const auto header = read_array<int32_t>(file, 8);
  EXPECT_EQ(header[0], 1) << "golden file version";
  Golden golden;
  golden.problem = {header[1], header[2], header[3], header[4], DataType::kHalf, header[5] != 0, header[6] != 0};
  const GemmProblem& p = golden.problem;
  const size_t scale_count = static_cast<size_t>(p.n) * p.groups();
  golden.codes = read_array<uint8_t>(file, static_cast<size_t>(p.n) * p.k / 2);
  if (p.has_zeros) golden.zeros = read_array<uint8_t>(file, (scale_count + 1) / 2);
  golden.scales = read_array<double>(file, scale_count);
  if (p.has_bias) golden.bias = read_array<double>(file, p.n);
  golden.x = read_array<double>(file, static_cast<size_t>(p.m) * p.k);
  golden.y = read_array<double>(file, static_cast<size_t>(p.m) * p.n);
  EXPECT_TRUE(file) << path << " is cut short";
  EXPECT_EQ(file.peek(), std::ifstream::traits_type::eof()) << path << " is too long";
  return golden;
}

TEST(Reference, AgreesWithThePythonOracle) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(GOLDEN_FOLDER)) {
    if (entry.path().extension() != ".bin") continue;
    SCOPED_TRACE(entry.path().filename().string());
    const Golden golden = read_golden(entry.path());
    if (HasFailure()) return;
    const std::vector<double> weights = dequantize_weights(golden.problem, golden.codes.data(), golden.scales.data(),
                                                           golden.problem.has_zeros ? golden.zeros.data() : nullptr);
    const std::vector<double> y = linear_reference(golden.problem, golden.x.data(), weights,
                                                   golden.problem.has_bias ? golden.bias.data() : nullptr);
    ASSERT_EQ(y.size(), golden.y.size());
    // Both sum K products in fp64, in different orders: K = 576 at most, so 576 * 2^-53 = 6e-14 of the largest term.
    for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], golden.y[i], 1e-12) << "output " << i;
    ++files;
  }
  EXPECT_GE(files, 4) << "golden files are missing in " << GOLDEN_FOLDER;
}

}  // namespace
}  // namespace awq2trt
