// BestToken behind CustomOperator; see best_token_op.h. Names, shapes and the kernel's problem come from
// ops/best_token.h.
#include "ort/best_token_op.h"

#include <cmath>
#include <cstdint>

#include "ops/best_token.h"
#include "ort/gpu.h"
#include "ort/host_numbers.h"

namespace awq2trt {
namespace ort {
namespace {

void check_node(const Node& node) {
  ErrorText error;
  require(best_token::check_input_count(static_cast<int32_t>(node.input_count()), &error), error);
}

// A node's tensors in one call.
class Call {
 public:
  explicit Call(const Context& context) : x_(context.input(0)) {
    ErrorText error;
    require(best_token::describe_problem(x_.shape(), x_.type(), &problem_, &error), error);
    y_ = static_cast<int64_t*>(context.output(0, {x_.shape().sizes, x_.shape().rank - 1}));
  }

  const InputTensor& x() const { return x_; }
  const BestTokenProblem& problem() const { return problem_; }
  int64_t* y() const { return y_; }

 private:
  const InputTensor x_;
  BestTokenProblem problem_ = {};
  int64_t* y_ = nullptr;
};

class CudaBestToken final : public Kernel {
 public:
  explicit CudaBestToken(const Node& node) { check_node(node); }

  void compute(const Context& context) override {
    const Call call(context);
    if (call.problem().rows == 0) return;  // tensors without bytes may have no memory
    throw_if_cuda_error(launch_best_token(call.problem(), call.x().data(), call.y(), device_.can_overlap(),
                                          static_cast<cudaStream_t>(context.stream())),
                        best_token::kName);
  }

 private:
  NodeDevice device_{best_token::kName};
};

// The first of equal scores; a NaN never wins over a number.
int64_t place_of_best(const std::vector<double>& scores) {
  int64_t best = 0;
  for (size_t i = 1; i < scores.size(); ++i) {
    if (scores[i] > scores[best] || (std::isnan(scores[best]) && !std::isnan(scores[i])))
      best = static_cast<int64_t>(i);
  }
  return best;
}

class CpuBestToken final : public Kernel {
 public:
  explicit CpuBestToken(const Node& node) { check_node(node); }

  void compute(const Context& context) override {
    const Call call(context);
    const int64_t vocabulary = call.problem().vocabulary;
    for (int64_t row = 0; row < call.problem().rows; ++row) {
      call.y()[row] = place_of_best(load_numbers(call.x().data(), call.x().type(), row * vocabulary, vocabulary));
    }
  }
};

template <typename BestTokenKernel>
class BestTokenOperator final : public CustomOperator {
 public:
  BestTokenOperator(const char* provider, abi::ElementType type)
      : provider_(provider), inputs_{{type, false}}, outputs_{{abi::ElementType::kInt64, false}} {}

  const char* name() const override { return best_token::kName; }
  const char* provider() const override { return provider_; }
  const std::vector<Argument>& inputs() const override { return inputs_; }
  const std::vector<Argument>& outputs() const override { return outputs_; }

  void infer_shapes(const ShapeInference& shapes) const override {
    std::vector<Dimension> shape = shapes.input(0);
    if (shape.empty()) return;
    shape.pop_back();
    shapes.set_output(0, abi::ElementType::kInt64, shape);
  }

  std::unique_ptr<Kernel> create_kernel(const Node& node) const override {
    return std::make_unique<BestTokenKernel>(node);
  }

 private:
  const char* const provider_;
  const std::vector<Argument> inputs_;
  const std::vector<Argument> outputs_;
};

}  // namespace

std::vector<std::unique_ptr<CustomOperator>> make_best_token_operators() {
  return make_for_all_types<BestTokenOperator<CudaBestToken>, BestTokenOperator<CpuBestToken>>();
}

}  // namespace ort
}  // namespace awq2trt
