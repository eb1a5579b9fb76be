// FusedLinear behind CustomOperator; see fused_linear_op.h. Names, shapes and the kernels' problem come from
// ops/fused_linear.h.
#include "ort/fused_linear_op.h"

#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "ops/fused_linear.h"
#include "ort/gated_activation_op.h"
#include "ort/gpu.h"
#include "ort/host_numbers.h"
#include "ort/residual_norm_op.h"
#include "ort/w4a16_linear_op.h"

namespace awq2trt {
namespace ort {
namespace {

using fused_linear::Attributes;

// The node's attributes, after a check that they fit its numbers of inputs and outputs.
Attributes read_attributes(const Node& node) {
  const auto integer = [&](const char* name) { return node.integer_attribute(name); };
  Attributes a = {};
  a.group_size = integer(fused_linear::kGroupSize);
  a.has_zeros = integer(fused_linear::kHasZeros);
  a.has_bias = integer(fused_linear::kHasBias);
  a.has_norm = integer(fused_linear::kHasNorm);
  a.has_residual = integer(fused_linear::kHasResidual);
  a.has_norm_bias = integer(fused_linear::kHasNormBias);
  a.rms = integer(fused_linear::kRms);
  a.has_activation = integer(fused_linear::kHasActivation);
  a.activation = integer(fused_linear::kActivation);
  a.gated = integer(fused_linear::kGated);
  a.has_addend = integer(fused_linear::kHasAddend);
  a.epsilon = node.float_attribute(fused_linear::kEpsilon);
  ErrorText error;
  require(fused_linear::check_attributes(a, &error), error);
  require(fused_linear::check_input_count(a, static_cast<int32_t>(node.input_count()), &error), error);
  require(fused_linear::check_output_count(a, static_cast<int32_t>(node.output_count()), &error), error);
  return a;
}

// A node's tensors in one call, checked against each other and against the attributes.
class Call {
 public:
  Call(const Attributes& attributes, const Context& context) {
    ErrorText error;
    const int32_t count = fused_linear::input_count(attributes);
    inputs_.reserve(count);
    Shape shapes[fused_linear::kMaxInputs];
    for (int32_t i = 0; i < count; ++i) {
      inputs_.push_back(context.input(i));
      shapes[i] = inputs_[i].shape();
      // ONNX Runtime has checked that x has a type that the operator declares, which on the CPU may be fp32, too.
      if (i > fused_linear::kX)
        require(fused_linear::check_type(attributes, i, inputs_[i].type(), x().type(), &error), error);
    }
    require(fused_linear::describe_problem(attributes, shapes, x().type(), &problem_, &error), error);
    const Shape& x_shape = shapes[fused_linear::kX];
    std::vector<int64_t> y_sizes(x_shape.sizes, x_shape.sizes + x_shape.rank);
    y_sizes.back() = fused_linear::output_width(attributes, problem_.linear.n);
    const auto data = [&](int32_t i) { return i == fused_linear::kNoInput ? nullptr : inputs_[i].data(); };
    tensors_.x = x().data();
    tensors_.residual = data(fused_linear::residual_input(attributes));
    tensors_.gain = data(fused_linear::gain_input(attributes));
    tensors_.norm_bias = data(fused_linear::norm_bias_input(attributes));
    tensors_.codes = data(fused_linear::codes_input(attributes));
    tensors_.scales = data(fused_linear::scales_input(attributes));
    tensors_.zeros = data(fused_linear::zeros_input(attributes));
    tensors_.bias = data(fused_linear::bias_input(attributes));
    tensors_.addend = data(fused_linear::addend_input(attributes));
    tensors_.y = context.output(fused_linear::kY, {y_sizes.data(), x_shape.rank});
    if (attributes.has_residual != 0) tensors_.sum = context.output(fused_linear::kSum, x_shape);
  }

  const InputTensor& x() const { return inputs_[fused_linear::kX]; }
  const FusedLinearProblem& problem() const { return problem_; }
  const FusedLinearTensors& tensors() const { return tensors_; }  // without workspace

 private:
  std::vector<InputTensor> inputs_;
  FusedLinearProblem problem_ = {};
  FusedLinearTensors tensors_ = {};
};

class CudaFusedLinear final : public Kernel {
 public:
  explicit CudaFusedLinear(const Node& node) : attributes_(read_attributes(node)) {
    for (int32_t i = fused_linear::first_constant(attributes_); i < fused_linear::end_of_constants(attributes_); ++i) {
      constant_weights_ = constant_weights_ && node.is_constant(static_cast<size_t>(i));
    }
  }

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    if (call.problem().linear.m == 0) return;  // tensors without bytes may have no memory
    const FusedLinearConfig config = config_of(call.problem());
    const Scratch workspace(context, call.x(), config.workspace_bytes);
    FusedLinearTensors tensors = call.tensors();
    tensors.workspace = workspace.data();
    throw_if_cuda_error(
        launch_fused_linear(call.problem(), config, tensors, static_cast<cudaStream_t>(context.stream())),
        fused_linear::kName);
  }

 private:
  // Kept for every M: while nothing is captured in a CUDA graph, the choice is made before every launch.
  FusedLinearConfig config_of(const FusedLinearProblem& problem) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = configs_.find(problem.linear.m);
    if (known != configs_.end()) return known->second;
    FusedLinearConfig config = choose_config(problem, device_.get());
    // Overlapping kernels read weights before the previous kernel has ended, so that kernel must not write them.
    config.linear.overlap = config.linear.overlap && constant_weights_;
    configs_.emplace(problem.linear.m, config);
    return config;
  }

  const Attributes attributes_;
  NodeDevice device_{fused_linear::kName};
  bool constant_weights_ = true;
  std::mutex mutex_;
  std::unordered_map<int, FusedLinearConfig> configs_;  // by M
};

class CpuFusedLinear final : public Kernel {
 public:
  explicit CpuFusedLinear(const Node& node) : attributes_(read_attributes(node)) {}

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    const FusedLinearProblem& problem = call.problem();
    const FusedLinearTensors& tensors = call.tensors();
    const GemmProblem& sizes = problem.linear;
    if (sizes.m == 0) return;
    const ElementType type = call.x().type();
    const int64_t row_bytes = bytes_of_number(type) * sizes.m;
    const Scratch normed(context, call.x(), problem.has_norm ? row_bytes * sizes.k : 0);
    const Scratch projected(context, call.x(), problem.gated ? row_bytes * sizes.n : 0);
    LinearTensors linear = {tensors.x, tensors.codes, tensors.scales, tensors.zeros, tensors.bias, tensors.y, nullptr};
    if (problem.has_norm) {
      linear.x = normed.data();
      compute_norm_on_cpu(problem.norm, type,
                          {tensors.x, tensors.residual, tensors.gain, tensors.norm_bias, tensors.sum, normed.data()});
    }
    if (problem.gated) linear.y = projected.data();
    constexpr int kCodeBits = 4;
    compute_linear_on_cpu(context, call.x(), sizes, linear, kCodeBits);
    if (problem.gated) return compute_activation_on_cpu(problem.activation, type, linear.y, tensors.y);
    if (problem.has_activation) activate(problem.activation, type, tensors.y);
    if (problem.has_addend) add(sizes, tensors.addend, type, tensors.y);
  }

 private:
  // y [M, N] = activation(y).
  static void activate(const ActivationProblem& problem, ElementType type, void* y) {
    for (int64_t row = 0; row < problem.rows; ++row) {
      const int64_t first = row * problem.width;
      std::vector<double> numbers = load_numbers(y, type, first, problem.width);
      for (double& number : numbers) number = activated_on_cpu(problem.activation, number);
      store_numbers(numbers.data(), problem.width, type, y, first);
    }
  }

  // y [M, N] = y + addend.
  static void add(const GemmProblem& sizes, const void* addend, ElementType type, void* y) {
    for (int64_t row = 0; row < sizes.m; ++row) {
      const int64_t first = row * sizes.n;
      std::vector<double> numbers = load_numbers(y, type, first, sizes.n);
      const std::vector<double> added = load_numbers(addend, type, first, sizes.n);
      for (int64_t i = 0; i < sizes.n; ++i) numbers[i] += added[i];
      store_numbers(numbers.data(), sizes.n, type, y, first);
    }
  }

  const Attributes attributes_;
};

template <typename LinearKernel>
class FusedLinearOperator final : public CustomOperator {
 public:
  FusedLinearOperator(const char* provider, abi::ElementType type)
      : provider_(provider), inputs_{{type, false}}, outputs_{{type, false}, {type, true}} {
    // The inputs after x depend on the attributes: they are of `type`, or codes and zeros.
    for (int32_t i = 1; i < fused_linear::kMaxInputs; ++i) {
      inputs_.push_back({abi::ElementType::kUndefined, i >= fused_linear::kMinInputs});
    }
  }

  const char* name() const override { return fused_linear::kName; }
  const char* provider() const override { return provider_; }
  const std::vector<Argument>& inputs() const override { return inputs_; }
  const std::vector<Argument>& outputs() const override { return outputs_; }

  void infer_shapes(const ShapeInference& shapes) const override {
    Attributes attributes = {};
    const auto flag = [&](const char* name) { return shapes.integer_attribute(name) != 0 ? 1 : 0; };
    attributes.has_norm = flag(fused_linear::kHasNorm);
    attributes.has_residual = flag(fused_linear::kHasResidual);
    attributes.has_norm_bias = flag(fused_linear::kHasNormBias);
    attributes.gated = flag(fused_linear::kGated);
    const std::vector<Dimension> x = shapes.input(fused_linear::kX);
    const std::vector<Dimension> codes = shapes.input(fused_linear::codes_input(attributes));
    if (x.empty() || codes.empty()) return;
    std::vector<int64_t> sizes;
    for (const Dimension& dimension : codes) sizes.push_back(dimension.size);
    ErrorText error;
    const Shape codes_shape = {sizes.data(), static_cast<int32_t>(sizes.size())};
    require(fused_linear::check_shapes(attributes, static_cast<int32_t>(x.size()), codes_shape, &error), error);
    std::vector<Dimension> y = x;
    y.back() = codes.front();
    if (attributes.gated != 0) {  // half of a named size has no name
      y.back() = {sizes[0] < 0 ? sizes[0] : fused_linear::output_width(attributes, sizes[0]), ""};
    }
    shapes.set_output_like_first_input(fused_linear::kY, y);
    if (attributes.has_residual != 0) shapes.set_output_like_first_input(fused_linear::kSum, x);
  }

  std::unique_ptr<Kernel> create_kernel(const Node& node) const override {
    return std::make_unique<LinearKernel>(node);
  }

 private:
  const char* const provider_;
  std::vector<Argument> inputs_;
  const std::vector<Argument> outputs_;
};

}  // namespace

std::vector<std::unique_ptr<CustomOperator>> make_fused_linear_operators() {
  return make_for_all_types<FusedLinearOperator<CudaFusedLinear>, FusedLinearOperator<CpuFusedLinear>>();
}

}  // namespace ort
}  // namespace awq2trt
