// ResidualNorm behind CustomOperator; see residual_norm_op.h. Names, shapes and the kernel's problem come from
// ops/residual_norm.h.
#include "ort/residual_norm_op.h"

#include <cmath>
#include <cstdint>

#include "ops/residual_norm.h"
#include "ort/gpu.h"
#include "ort/host_numbers.h"

namespace awq2trt {
namespace ort {
namespace {

using residual_norm::Attributes;

// The node's attributes, after a check that they fit its numbers of inputs and outputs.
Attributes read_attributes(const Node& node) {
  const Attributes attributes = {
      node.integer_attribute(residual_norm::kHasResidual), node.integer_attribute(residual_norm::kHasBias),
      node.integer_attribute(residual_norm::kRms), node.float_attribute(residual_norm::kEpsilon)};
  ErrorText error;
  require(residual_norm::check_attributes(attributes, &error), error);
  require(residual_norm::check_input_count(attributes, static_cast<int32_t>(node.input_count()), &error), error);
  require(residual_norm::check_output_count(attributes, static_cast<int32_t>(node.output_count()), &error), error);
  return attributes;
}

// A node's tensors in one call, checked against each other and against the attributes.
class Call {
 public:
  Call(const Attributes& attributes, const Context& context) {
    ErrorText error;
    const int32_t count = residual_norm::input_count(attributes);
    inputs_.reserve(count);
    Shape shapes[residual_norm::kMaxInputs];
    for (int32_t i = 0; i < count; ++i) {
      inputs_.push_back(context.input(i));
      shapes[i] = inputs_[i].shape();
      require(residual_norm::check_type(i, inputs_[i].type(), type(), &error), error);
    }
    require(residual_norm::describe_problem(attributes, shapes, type(), &problem_, &error), error);
    tensors_.x = inputs_[residual_norm::kX].data();
    tensors_.gain = inputs_[residual_norm::gain_input(attributes)].data();
    if (problem_.has_residual) {
      tensors_.residual = inputs_[residual_norm::residual_input(attributes)].data();
      tensors_.sum = context.output(residual_norm::kSum, shapes[residual_norm::kX]);
    }
    if (problem_.has_bias) tensors_.bias = inputs_[residual_norm::bias_input(attributes)].data();
    tensors_.y = context.output(residual_norm::kY, shapes[residual_norm::kX]);
  }

  ElementType type() const { return inputs_[residual_norm::kX].type(); }
  const NormProblem& problem() const { return problem_; }
  const NormTensors& tensors() const { return tensors_; }

 private:
  std::vector<InputTensor> inputs_;
  NormProblem problem_ = {};
  NormTensors tensors_ = {};
};

class CudaNorm final : public Kernel {
 public:
  explicit CudaNorm(const Node& node) : attributes_(read_attributes(node)) {
    const auto gain = static_cast<size_t>(residual_norm::gain_input(attributes_));
    constant_weights_ = node.is_constant(gain) && (attributes_.has_bias == 0 || node.is_constant(gain + 1));
  }

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    if (call.problem().rows == 0) return;  // tensors without bytes may have no memory
    const bool overlap = constant_weights_ && device_.can_overlap();
    throw_if_cuda_error(
        launch_residual_norm(call.problem(), call.tensors(), overlap, static_cast<cudaStream_t>(context.stream())),
        residual_norm::kName);
  }

 private:
  const Attributes attributes_;
  bool constant_weights_ = false;
  NodeDevice device_{residual_norm::kName};
};

// Replaces `row` by its norm.
void normalize(const NormProblem& problem, const std::vector<double>& gain, const std::vector<double>& bias,
               std::vector<double>* row) {
  double mean = 0.0, squares = 0.0;
  if (!problem.rms) {
    for (const double value : *row) mean += value / problem.width;
  }
  for (const double value : *row) squares += (value - mean) * (value - mean) / problem.width;
  const double factor = 1.0 / std::sqrt(squares + problem.eps);
  for (int i = 0; i < problem.width; ++i) {
    (*row)[i] = ((*row)[i] - mean) * factor * gain[i] + (problem.has_bias ? bias[i] : 0.0);
  }
}

class CpuNorm final : public Kernel {
 public:
  explicit CpuNorm(const Node& node) : attributes_(read_attributes(node)) {}

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    compute_norm_on_cpu(call.problem(), call.type(), call.tensors());
  }

 private:
  const Attributes attributes_;
};

template <typename NormKernel>
class ResidualNormOperator final : public CustomOperator {
 public:
  ResidualNormOperator(const char* provider, abi::ElementType type)
      : provider_(provider),
        // After x: residual, gain and bias; any of them except the gain may be missing.
        inputs_{{type, false}, {type, false}, {type, true}, {type, true}},
        outputs_{{type, false}, {type, true}} {}

  const char* name() const override { return residual_norm::kName; }
  const char* provider() const override { return provider_; }
  const std::vector<Argument>& inputs() const override { return inputs_; }
  const std::vector<Argument>& outputs() const override { return outputs_; }

  void infer_shapes(const ShapeInference& shapes) const override {
    const std::vector<Dimension> shape = shapes.input(residual_norm::kX);
    if (shape.empty()) return;
    shapes.set_output_like_first_input(residual_norm::kY, shape);
    if (shapes.integer_attribute(residual_norm::kHasResidual) != 0) {
      shapes.set_output_like_first_input(residual_norm::kSum, shape);
    }
  }

  std::unique_ptr<Kernel> create_kernel(const Node& node) const override { return std::make_unique<NormKernel>(node); }

 private:
  const char* const provider_;
  const std::vector<Argument> inputs_;
  const std::vector<Argument> outputs_;
};

}  // namespace

void compute_norm_on_cpu(const NormProblem& problem, ElementType type, const NormTensors& tensors) {
  const int64_t width = problem.width;
  const auto load = [&](const void* tensor, int64_t first) { return load_numbers(tensor, type, first, width); };
  const std::vector<double> gain = load(tensors.gain, 0);
  const std::vector<double> bias = problem.has_bias ? load(tensors.bias, 0) : std::vector<double>();
  for (int64_t first = 0; first < problem.rows * width; first += width) {
    std::vector<double> row = load(tensors.x, first);
    if (problem.has_residual) {
      const std::vector<double> residual = load(tensors.residual, first);
      for (int64_t i = 0; i < width; ++i) row[i] += residual[i];
      store_numbers(row.data(), width, type, tensors.sum, first);
      row = load(tensors.sum, first);  // rounded
    }
    normalize(problem, gain, bias, &row);
    store_numbers(row.data(), width, type, tensors.y, first);
  }
}

std::vector<std::unique_ptr<CustomOperator>> make_residual_norm_operators() {
  return make_for_all_types<ResidualNormOperator<CudaNorm>, ResidualNormOperator<CpuNorm>>();
}

}  // namespace ort
}  // namespace awq2trt
