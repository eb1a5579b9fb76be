// GatedActivation behind CustomOperator; see gated_activation_op.h. Names, shapes and the kernel's problem come from
// ops/gated_activation.h.
#include "ort/gated_activation_op.h"

#include <cmath>
#include <cstdint>

#include "ops/gated_activation.h"
#include "ort/gpu.h"
#include "ort/host_numbers.h"

namespace awq2trt {
namespace ort {
namespace {

int32_t read_activation(const Node& node) {
  const int32_t activation = node.integer_attribute(gated_activation::kActivation);
  ErrorText error;
  require(gated_activation::check_activation(activation, &error), error);
  require(gated_activation::check_input_count(static_cast<int32_t>(node.input_count()), &error), error);
  return activation;
}

// A node's tensors in one call, checked against its attribute.
class Call {
 public:
  Call(int32_t activation, const Context& context) : x_(context.input(0)) {
    ErrorText error;
    require(gated_activation::describe_problem(activation, x_.shape(), x_.type(), &problem_, &error), error);
    std::vector<int64_t> sizes(x_.shape().sizes, x_.shape().sizes + x_.shape().rank);
    sizes.back() = problem_.width;
    y_ = context.output(0, {sizes.data(), x_.shape().rank});
  }

  const InputTensor& x() const { return x_; }
  const ActivationProblem& problem() const { return problem_; }
  void* y() const { return y_; }

 private:
  const InputTensor x_;
  ActivationProblem problem_ = {};
  void* y_ = nullptr;
};

class CudaActivation final : public Kernel {
 public:
  explicit CudaActivation(const Node& node) : activation_(read_activation(node)) {}

  void compute(const Context& context) override {
    const Call call(activation_, context);
    if (call.problem().rows == 0) return;  // tensors without bytes may have no memory
    throw_if_cuda_error(launch_gated_activation(call.problem(), call.x().data(), call.y(), device_.can_overlap(),
                                                static_cast<cudaStream_t>(context.stream())),
                        gated_activation::kName);
  }

 private:
  const int32_t activation_;
  NodeDevice device_{gated_activation::kName};
};

class CpuActivation final : public Kernel {
 public:
  explicit CpuActivation(const Node& node) : activation_(read_activation(node)) {}

  void compute(const Context& context) override {
    const Call call(activation_, context);
    compute_activation_on_cpu(call.problem(), call.x().type(), call.x().data(), call.y());
  }

 private:
  const int32_t activation_;
};

template <typename ActivationKernel>
class GatedActivationOperator final : public CustomOperator {
 public:
  GatedActivationOperator(const char* provider, abi::ElementType type)
      : provider_(provider), inputs_{{type, false}}, outputs_{{type, false}} {}

  const char* name() const override { return gated_activation::kName; }
  const char* provider() const override { return provider_; }
  const std::vector<Argument>& inputs() const override { return inputs_; }
  const std::vector<Argument>& outputs() const override { return outputs_; }

  void infer_shapes(const ShapeInference& shapes) const override {
    std::vector<Dimension> shape = shapes.input(0);
    if (shape.empty()) return;
    const int64_t last = shape.back().size;
    ErrorText error;
    require(gated_activation::check_halves({&last, 1}, &error), error);
    shape.back() = {last < 0 ? last : last / 2, ""};  // half of a named size has no name
    shapes.set_output_like_first_input(0, shape);
  }

  std::unique_ptr<Kernel> create_kernel(const Node& node) const override {
    return std::make_unique<ActivationKernel>(node);
  }

 private:
  const char* const provider_;
  const std::vector<Argument> inputs_;
  const std::vector<Argument> outputs_;
};

}  // namespace

double activated_on_cpu(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::kGeluTanh: {
      const double sqrt_2_over_pi = std::sqrt(2.0 / std::acos(-1.0));
      return 0.5 * x * (1.0 + std::tanh(sqrt_2_over_pi * (x + 0.044715 * x * x * x)));
    }
    case Activation::kRelu:
      break;
  }
  return x > 0.0 ? x : 0.0;
}

void compute_activation_on_cpu(const ActivationProblem& problem, ElementType type, const void* x, void* y) {
  const int64_t width = problem.width;
  for (int64_t row = 0; row < problem.rows; ++row) {
    const std::vector<double> halves = load_numbers(x, type, row * 2 * width, 2 * width);
    std::vector<double> out(width);
    for (int64_t i = 0; i < width; ++i) out[i] = activated_on_cpu(problem.activation, halves[i]) * halves[width + i];
    store_numbers(out.data(), width, type, y, row * width);
  }
}

std::vector<std::unique_ptr<CustomOperator>> make_gated_activation_operators() {
  return make_for_all_types<GatedActivationOperator<CudaActivation>, GatedActivationOperator<CpuActivation>>();
}

}  // namespace ort
}  // namespace awq2trt
