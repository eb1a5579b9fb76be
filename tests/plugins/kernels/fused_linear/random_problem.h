// Problems of FusedLinear with random tensors on the device, and what they compute: by the operators apart, each on
// memory of its own, and by the definition in fp64. Inputs are drawn anew in every run (AWQ2TRT_TEST_SEED repeats one).
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/fused_linear/epilogue.h"
#include "kernels/fused_linear/fused_linear.h"
#include "kernels/gpu_test.h"
#include "kernels/w4a16_linear/reference.h"

namespace awq2trt {

constexpr int kWholeRow = 1 << 20;  // a group
constexpr DataType kTypes[] = {DataType::kHalf, DataType::kBFloat16};

// What is fused with the linear.
struct Parts {
  bool norm, rms, residual, norm_bias, activation;
  Activation kind;
  bool gated = true, addend = false;
};
constexpr Parts kRms = {true, true, false, false, false, {}};
constexpr Parts kRmsResidual = {true, true, true, false, false, {}};
constexpr Parts kLayer = {true, false, false, false, false, {}};
constexpr Parts kLayerEverything = {true, false, true, true, false, {}};
constexpr Parts kGate = {false, false, false, false, true, Activation::kSilu};
constexpr Parts kNormAndGate = {true, true, true, false, true, Activation::kSilu};
constexpr Parts kLayerAndGate = {true, false, true, true, true, Activation::kGelu};
constexpr Parts kGelu = {false, false, false, false, true, Activation::kGelu, false};
constexpr Parts kAddend = {false, false, false, false, false, {}, false, true};
constexpr Parts kReluAndAddend = {false, false, false, false, true, Activation::kRelu, false, true};
constexpr Parts kLayerAndGelu = {true, false, true, true, true, Activation::kGelu, false};
constexpr Parts kEverything = {true, false, true, true, true, Activation::kGeluTanh, false, true};

struct Sizes {
  int m, n, k, group_size;
};

inline FusedLinearProblem problem_of(const Sizes& s, const Parts& parts, DataType dtype, bool zeros, bool bias) {
  FusedLinearProblem p = {};
  p.linear = {s.m, s.n, s.k, s.group_size == kWholeRow ? s.k : s.group_size, dtype, zeros, bias};
  p.has_norm = parts.norm;
  if (parts.norm) p.norm = {s.m, s.k, 1e-5f, parts.rms, parts.residual, parts.norm_bias, dtype};
  p.has_activation = parts.activation;
  p.gated = parts.activation && parts.gated;
  if (parts.activation) p.activation = {s.m, p.gated ? s.n / 2 : s.n, parts.kind, dtype};
  p.has_addend = parts.addend;
  return p;
}

inline std::string name_of(const FusedLinearProblem& p) {
  const GemmProblem& l = p.linear;
  std::string name = l.dtype == DataType::kHalf ? "half" : "bfloat16";
  name += " M " + std::to_string(l.m) + " N " + std::to_string(l.n) + " K " + std::to_string(l.k) + " G " +
          std::to_string(l.group_size) + (l.has_zeros ? " zeros" : "") + (l.has_bias ? " bias" : "");
  if (p.has_norm) name += std::string(p.norm.rms ? ", rms" : ", layer") + (p.norm.has_residual ? " residual" : "");
  if (p.has_norm && p.norm.has_bias) name += " norm bias";
  if (p.has_activation) {
    name += std::string(p.gated ? ", gated" : "") + ", activation " +
            std::to_string(static_cast<int>(p.activation.activation));
  }
  return p.has_addend ? name + ", addend" : name;
}

inline std::vector<uint8_t> random_bytes(size_t count, std::mt19937& random) {
  std::vector<uint8_t> values(count);
  for (uint8_t& value : values) value = static_cast<uint8_t>(random());
  return values;
}

template <typename T>
std::vector<double> widened(const std::vector<T>& values) {
  std::vector<double> wide;
  for (const T& value : values) wide.push_back(static_cast<float>(value));
  return wide;
}

inline double activated(Activation activation, double x) {
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

// Random tensors of a problem, on the device; and what leaves.
template <typename T>
class RandomProblem {
 public:
  explicit RandomProblem(const FusedLinearProblem& problem, int unaligned_bytes = 0) : p(problem) {
    std::mt19937 random(test_seed());
    const GemmProblem& l = p.linear;
    const size_t inputs = size_t{1} * l.m * l.k, groups = static_cast<size_t>(l.n) * l.groups();
    // A norm's input is as large as a residual stream gets; without one, x is what a norm would have made of it.
    x = random_normal<T>(inputs, p.has_norm ? 5.f : 0.f, p.has_norm ? 100.f : 1.f, random);
    residual = random_normal<T>(inputs, 0.f, 100.f, random);
    gain = random_normal<T>(l.k, 1.f, 0.3f, random);
    norm_bias = random_normal<T>(l.k, 0.f, 0.5f, random);
    codes = random_bytes(static_cast<size_t>(l.n) * l.k / 2, random);
    scales = random_normal<T>(groups, 0.01f, 0.002f, random);
    zeros = random_bytes((groups + 1) / 2, random);
    bias = random_normal<T>(l.n, 0.f, 1.f, random);
    addend = random_normal<T>(size_t{1} * l.m * l.n, 0.f, 5.f, random);
    std::vector<uint8_t> shifted(unaligned_bytes);
    shifted.insert(shifted.end(), codes.begin(), codes.end());
    d_codes = std::make_unique<DeviceArray<uint8_t>>(shifted);
    d_x = std::make_unique<DeviceArray<T>>(x), d_residual = std::make_unique<DeviceArray<T>>(residual);
    d_gain = std::make_unique<DeviceArray<T>>(gain), d_norm_bias = std::make_unique<DeviceArray<T>>(norm_bias);
    d_scales = std::make_unique<DeviceArray<T>>(scales), d_bias = std::make_unique<DeviceArray<T>>(bias);
    d_zeros = std::make_unique<DeviceArray<uint8_t>>(zeros), d_addend = std::make_unique<DeviceArray<T>>(addend);
    y = std::make_unique<DeviceArray<T>>(outputs()), sum = std::make_unique<DeviceArray<T>>(inputs);
    first_code = d_codes->get() + unaligned_bytes;
  }

  size_t outputs() const { return size_t{1} * p.linear.m * p.linear.n / (p.gated ? 2 : 1); }

  FusedLinearTensors tensors(void* workspace) const {
    const bool residual_there = p.has_norm && p.norm.has_residual;
    return {d_x->get(),
            residual_there ? d_residual->get() : nullptr,
            p.has_norm ? d_gain->get() : nullptr,
            p.has_norm && p.norm.has_bias ? d_norm_bias->get() : nullptr,
            first_code,
            d_scales->get(),
            p.linear.has_zeros ? d_zeros->get() : nullptr,
            p.linear.has_bias ? d_bias->get() : nullptr,
            p.has_addend ? d_addend->get() : nullptr,
            y->get(),
            residual_there ? sum->get() : nullptr,
            workspace};
  }

  void poison() const {
    cudaMemset(y->get(), 0xff, sizeof(T) * outputs());  // NaN in both types
    cudaMemset(sum->get(), 0xff, sizeof(T) * x.size());
  }

  // y of the operators one after the other, each on memory of its own; the sum goes to this->sum.
  std::vector<T> apart(const KernelConfig& config) const {
    const GemmProblem& l = p.linear;
    const FusedLinearTensors t = tensors(nullptr);
    const DeviceArray<T> normed(x.size()), projected(size_t{1} * l.m * l.n);
    const DeviceArray<uint8_t> workspace(config.workspace_bytes);
    if (p.has_norm) {
      EXPECT_EQ(
          launch_residual_norm(p.norm, {t.x, t.residual, t.gain, t.norm_bias, t.sum, normed.get()}, false, nullptr),
          cudaSuccess);
    }
    const LinearTensors linear = {
        p.has_norm ? normed.get() : t.x, t.codes, t.scales, t.zeros, t.bias, projected.get(), workspace.get()};
    EXPECT_EQ(launch_w4a16_linear(l, config, linear, nullptr), cudaSuccess);
    if (!p.gated) return epilogue(projected.host());
    EXPECT_EQ(launch_gated_activation(p.activation, projected.get(), y->get(), false, nullptr), cudaSuccess);
    return y->host();
  }

  // The definition in fp64; the sum alone is rounded, since the operator says so.
  std::vector<double> expected() const {
    const GemmProblem& l = p.linear;
    std::vector<double> rows = widened(x);
    if (p.has_norm && p.norm.has_residual) rows = widened(rounded_sums());
    for (int m = 0; m < l.m && p.has_norm; ++m) normalize(&rows[static_cast<size_t>(m) * l.k]);
    const std::vector<double> weights =
        dequantize_weights(l, codes.data(), widened(scales).data(), l.has_zeros ? zeros.data() : nullptr);
    const std::vector<double> biases = widened(bias);
    const std::vector<double> all = linear_reference(l, rows.data(), weights, l.has_bias ? biases.data() : nullptr);
    if (!p.gated) {
      std::vector<double> out = all;
      for (size_t i = 0; i < out.size(); ++i) {
        if (p.has_activation) out[i] = activated(p.activation.activation, out[i]);
        if (p.has_addend) out[i] += static_cast<float>(addend[i]);
      }
      return out;
    }
    std::vector<double> gated;
    const int width = l.n / 2;
    for (int m = 0; m < l.m; ++m) {
      const double* const row = &all[static_cast<size_t>(m) * l.n];
      for (int i = 0; i < width; ++i) gated.push_back(activated(p.activation.activation, row[i]) * row[width + i]);
    }
    return gated;
  }

  std::vector<T> rounded_sums() const {
    std::vector<T> sums;
    for (size_t i = 0; i < x.size(); ++i) {
      sums.push_back(static_cast<T>(static_cast<float>(x[i]) + static_cast<float>(residual[i])));
    }
    return sums;
  }

  FusedLinearProblem p;
  std::vector<T> x, residual, gain, norm_bias, scales, bias, addend;
  std::vector<uint8_t> codes, zeros;
  std::unique_ptr<DeviceArray<T>> d_x, d_residual, d_gain, d_norm_bias, d_scales, d_bias, d_addend, y, sum;
  std::unique_ptr<DeviceArray<uint8_t>> d_codes, d_zeros;
  uint8_t* first_code = nullptr;

 private:
  // The linear's outputs, activated and added to: by the kernel, on memory of its own.
  std::vector<T> epilogue(const std::vector<T>& outputs) const {
    const DeviceArray<T> values(outputs);
    EXPECT_EQ(launch_epilogue(p, d_addend->get(), values.get(), false, nullptr), cudaSuccess);
    return values.host();
  }

  void normalize(double* row) const {
    const int width = p.norm.width;
    double mean = 0.0, squares = 0.0;
    for (int i = 0; i < width; ++i) mean += p.norm.rms ? 0.0 : row[i] / width;
    for (int i = 0; i < width; ++i) squares += (row[i] - mean) * (row[i] - mean) / width;
    for (int i = 0; i < width; ++i) {
      row[i] = (row[i] - mean) / std::sqrt(squares + p.norm.eps) * static_cast<float>(gain[i]) +
               (p.norm.has_bias ? static_cast<float>(norm_bias[i]) : 0.f);
    }
  }
};

}  // namespace awq2trt
