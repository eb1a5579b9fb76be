// The definition of the op, written out in loops; see reference.h.
#include "kernels/w4a16_linear/reference.h"

namespace awq2trt {

int int4_at(const uint8_t* packed, int64_t index) {
  const int nibble = index % 2 == 0 ? packed[index / 2] & 0xf : packed[index / 2] >> 4;
  return nibble < 8 ? nibble : nibble - 16;
}

std::vector<double> dequantize_weights(const GemmProblem& problem, const uint8_t* codes, const double* scales,
                                       const uint8_t* zeros) {
  std::vector<double> weights(static_cast<size_t>(problem.n) * problem.k);
  for (int64_t n = 0; n < problem.n; ++n) {
    for (int64_t k = 0; k < problem.k; ++k) {
      const int64_t group = n * problem.groups() + k / problem.group_size;
      const int zero = zeros != nullptr ? int4_at(zeros, group) : 0;
      weights[n * problem.k + k] = scales[group] * (int4_at(codes, n * problem.k + k) - zero);
    }
  }
  return weights;
}

std::vector<double> linear_reference(const GemmProblem& problem, const double* x, const std::vector<double>& weights,
                                     const double* bias) {
  std::vector<double> y(static_cast<size_t>(problem.m) * problem.n);
  for (int64_t m = 0; m < problem.m; ++m) {
    for (int64_t n = 0; n < problem.n; ++n) {
      double sum = bias != nullptr ? bias[n] : 0.0;
      for (int64_t k = 0; k < problem.k; ++k) sum += x[m * problem.k + k] * weights[n * problem.k + k];
      y[m * problem.n + n] = sum;
    }
  }
  return y;
}

}  // namespace awq2trt
