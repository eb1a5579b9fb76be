// W4A16Linear and W8A16Linear behind CustomOperator; see w4a16_linear_op.h. Names, shapes and the kernels' problem come
// from ops/w4a16_linear.h, which the TensorRT plugin shares.
#include "ort/w4a16_linear_op.h"

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

#include "kernels/w8a16_linear/w8a16_linear.h"
#include "ops/w4a16_linear.h"
#include "ort/gpu.h"
#include "ort/w4a16_linear_cpu.h"

namespace awq2trt {
namespace ort {
namespace {

using w4a16_linear::Attributes;
using w4a16_linear::kCodes;
using w4a16_linear::kMaxInputs;
using w4a16_linear::kX;

// The node's attributes, after a check that they fit its number of inputs.
Attributes read_attributes(const Node& node, int32_t code_bits) {
  const Attributes attributes = {node.integer_attribute(w4a16_linear::kGroupSize),
                                 node.integer_attribute(w4a16_linear::kHasZeros),
                                 node.integer_attribute(w4a16_linear::kHasBias), code_bits};
  ErrorText error;
  require(w4a16_linear::check_attributes(attributes, &error), error);
  const auto input_count = static_cast<int32_t>(node.input_count());
  require(w4a16_linear::check_input_count(attributes, input_count, &error), error);
  return attributes;
}

// A node's tensors in one call, checked against each other and against the attributes.
class Call {
 public:
  Call(const Attributes& attributes, const Context& context) : attributes_(attributes) {
    ErrorText error;
    const auto count = static_cast<size_t>(w4a16_linear::input_count(attributes));
    inputs_.reserve(count);
    Shape shapes[kMaxInputs];
    for (size_t i = 0; i < count; ++i) {
      inputs_.push_back(context.input(i));
      shapes[i] = inputs_[i].shape();
    }
    // ONNX Runtime has checked that the others have the types that the operator declares.
    for (size_t i = w4a16_linear::kFirstOptional; i < count; ++i) {
      const auto tensor = static_cast<int32_t>(i);
      require(w4a16_linear::check_type(attributes, tensor, inputs_[i].type(), x().type(), &error), error);
    }
    require(w4a16_linear::describe_problem(attributes, shapes, x().type(), &problem_, &error), error);
    y_shape_.assign(shapes[kX].sizes, shapes[kX].sizes + shapes[kX].rank);
    y_shape_.back() = problem_.n;
    tensors_.x = x().data();
    tensors_.codes = inputs_[kCodes].data();
    tensors_.scales = inputs_[w4a16_linear::kScales].data();
    if (attributes.has_zeros != 0) tensors_.zeros = inputs_[w4a16_linear::zeros_input(attributes)].data();
    if (attributes.has_bias != 0) tensors_.bias = inputs_[w4a16_linear::bias_input(attributes)].data();
    tensors_.y = context.output(0, {y_shape_.data(), static_cast<int32_t>(y_shape_.size())});
  }

  const InputTensor& x() const { return inputs_[kX]; }
  const GemmProblem& problem() const { return problem_; }
  const LinearTensors& tensors() const { return tensors_; }  // without workspace

 private:
  const Attributes attributes_;
  std::vector<InputTensor> inputs_;
  std::vector<int64_t> y_shape_;
  GemmProblem problem_ = {};
  LinearTensors tensors_ = {};
};

class CudaLinear final : public Kernel {
 public:
  CudaLinear(const Node& node, int32_t code_bits) : attributes_(read_attributes(node, code_bits)) {
    for (int32_t i = kCodes; i < w4a16_linear::input_count(attributes_); ++i) {
      constant_weights_ = constant_weights_ && node.is_constant(static_cast<size_t>(i));
    }
  }

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    const auto stream = static_cast<cudaStream_t>(context.stream());
    if (attributes_.code_bits == 8) {
      const bool overlap = constant_weights_ && device_.can_overlap();
      throw_if_error(launch_w8a16_linear(call.problem(), call.tensors(), overlap, stream), "launch failed",
                     call.problem());
      return;
    }
    const KernelConfig config = config_of(call.problem());
    const Scratch workspace(context, call.x(), config.workspace_bytes);
    LinearTensors tensors = call.tensors();
    tensors.workspace = workspace.data();
    throw_if_error(launch_w4a16_linear(call.problem(), config, tensors, stream), "launch failed", call.problem());
  }

 private:
  void throw_if_error(cudaError_t status, const char* what, const GemmProblem& problem) const {
    if (status == cudaSuccess) return;
    ErrorText error;
    fail(&error, "%s with M = %d, N = %d, K = %d, group_size = %d: %s: %s", name_of(attributes_), problem.m, problem.n,
         problem.k, problem.group_size, what, cudaGetErrorString(status));
    throw Failure(error.text);
  }

  // Kept for every M: while nothing is captured in a CUDA graph, the choice is made before every launch.
  KernelConfig config_of(const GemmProblem& problem) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = configs_.find(problem.m);
    if (known != configs_.end()) return known->second;
    KernelConfig config = choose_config(problem, device_.get());
    // Overlapping kernels read weights before the previous kernel has ended, so that kernel must not write them.
    config.overlap = config.overlap && constant_weights_;
    configs_.emplace(problem.m, config);
    return config;
  }

  const Attributes attributes_;
  NodeDevice device_{name_of(attributes_)};
  bool constant_weights_ = true;
  std::mutex mutex_;
  std::unordered_map<int, KernelConfig> configs_;  // by M
};

class CpuLinear final : public Kernel {
 public:
  CpuLinear(const Node& node, int32_t code_bits) : attributes_(read_attributes(node, code_bits)) {}

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    if (call.problem().m == 0) return;
    compute_linear_on_cpu(context, call.x(), call.problem(), call.tensors(), attributes_.code_bits);
  }

 private:
  const Attributes attributes_;
};

template <typename LinearKernel, int kBits>
class LinearOperator final : public CustomOperator {
 public:
  LinearOperator(const char* provider, abi::ElementType type)
      : provider_(provider),
        // The last two inputs are zeros (of the codes' type), bias (of `type`), or both in this order (FORMAT.md).
        inputs_{{type, false},
                {kBits == 8 ? abi::ElementType::kInt8 : abi::ElementType::kInt4, false},
                {type, false},
                {abi::ElementType::kUndefined, true},
                {abi::ElementType::kUndefined, true}},
        outputs_{{type, false}} {}

  const char* name() const override { return name_of(kAttributes); }
  const char* provider() const override { return provider_; }
  const std::vector<Argument>& inputs() const override { return inputs_; }
  const std::vector<Argument>& outputs() const override { return outputs_; }

  void infer_shapes(const ShapeInference& shapes) const override {
    std::vector<Dimension> shape = shapes.input(kX);
    const std::vector<Dimension> codes = shapes.input(kCodes);
    if (shape.empty() || codes.empty()) return;
    ErrorText error;
    const auto x_rank = static_cast<int32_t>(shape.size()), codes_rank = static_cast<int32_t>(codes.size());
    require(w4a16_linear::check_ranks(kAttributes, x_rank, codes_rank, &error), error);
    shape.back() = codes.front();
    shapes.set_output_like_first_input(0, shape);
  }

  std::unique_ptr<Kernel> create_kernel(const Node& node) const override {
    return std::make_unique<LinearKernel>(node, kBits);
  }

 private:
  static constexpr Attributes kAttributes = {0, 0, 0, kBits};  // only the width of codes is known of them
  const char* const provider_;
  const std::vector<Argument> inputs_;
  const std::vector<Argument> outputs_;
};

}  // namespace

void compute_linear_on_cpu(const Context& context, const InputTensor& like, const GemmProblem& problem,
                           const LinearTensors& tensors, int code_bits) {
  const CpuProblem linear(problem, tensors, like.type(), code_bits);
  const Scratch activations(context, like, linear.activations_bytes());
  const auto spread = static_cast<float*>(activations.data());
  context.parallel_for(linear.activation_tasks(), [&](size_t task) { linear.spread_activations(task, spread); });
  context.parallel_for(linear.row_tasks(), [&](size_t task) { linear.compute_rows(task, spread); });
}

std::vector<std::unique_ptr<CustomOperator>> make_w4a16_linear_operators() {
  return make_for_all_types<LinearOperator<CudaLinear, 4>, LinearOperator<CpuLinear, 4>>();
}

std::vector<std::unique_ptr<CustomOperator>> make_w8a16_linear_operators() {
  return make_for_all_types<LinearOperator<CudaLinear, 8>, LinearOperator<CpuLinear, 8>>();
}

}  // namespace ort
}  // namespace awq2trt
