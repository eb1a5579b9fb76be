// W4A16Embedding and W8A16Embedding behind CustomOperator; see quantized_embedding_op.h. Names, shapes and the kernel's
// problem come from ops/quantized_embedding.h.
#include "ort/quantized_embedding_op.h"

#include <cstdint>
#include <string>

#include "ops/quantized_embedding.h"
#include "ort/gpu.h"
#include "ort/host_numbers.h"

namespace awq2trt {
namespace ort {
namespace {

namespace rules = quantized_embedding;
using rules::Attributes;

// The node's attributes, after a check that they fit its number of inputs.
Attributes read_attributes(const Node& node, int32_t code_bits) {
  const Attributes attributes = {node.integer_attribute(rules::kGroupSize), node.integer_attribute(rules::kHasZeros),
                                 code_bits};
  ErrorText error;
  require(rules::check_attributes(attributes, &error), error);
  require(rules::check_input_count(attributes, static_cast<int32_t>(node.input_count()), &error), error);
  return attributes;
}

// A node's tensors in one call, checked against each other and against the attributes.
class Call {
 public:
  Call(const Attributes& attributes, const Context& context) {
    ErrorText error;
    const auto count = static_cast<size_t>(rules::input_count(attributes));
    inputs_.reserve(count);
    Shape shapes[rules::kMaxInputs];
    for (size_t i = 0; i < count; ++i) {
      inputs_.push_back(context.input(i));
      shapes[i] = inputs_[i].shape();
      // ONNX Runtime has checked that the inputs before zeros have the types that the operator declares.
      require(i < rules::kZeros || rules::check_type(attributes, rules::kZeros, inputs_[i].type(), type(), &error),
              error);
    }
    require(rules::describe_problem(attributes, shapes, type(), &problem_, &error), error);
    std::vector<int64_t> sizes(shapes[rules::kIds].sizes, shapes[rules::kIds].sizes + shapes[rules::kIds].rank);
    sizes.push_back(problem_.width);
    tensors_.scales = inputs_[rules::kScales].data();
    tensors_.codes = inputs_[rules::kCodes].data();
    tensors_.ids = static_cast<const int64_t*>(inputs_[rules::kIds].data());
    if (attributes.has_zeros != 0) tensors_.zeros = inputs_[rules::kZeros].data();
    tensors_.y = context.output(0, {sizes.data(), static_cast<int32_t>(sizes.size())});
  }

  ElementType type() const { return inputs_[rules::kScales].type(); }
  const EmbeddingProblem& problem() const { return problem_; }
  const EmbeddingTensors& tensors() const { return tensors_; }

 private:
  std::vector<InputTensor> inputs_;
  EmbeddingProblem problem_ = {};
  EmbeddingTensors tensors_ = {};
};

class CudaEmbedding final : public Kernel {
 public:
  CudaEmbedding(const Node& node, int32_t code_bits) : attributes_(read_attributes(node, code_bits)) {}

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    if (call.problem().rows == 0) return;  // tensors without bytes may have no memory
    throw_if_cuda_error(launch_quantized_embedding(call.problem(), call.tensors(), device_.can_overlap(),
                                                   static_cast<cudaStream_t>(context.stream())),
                        name_of(attributes_));
  }

 private:
  const Attributes attributes_;
  NodeDevice device_{name_of(attributes_)};
};

// The signed code at `index` of a packed tensor.
int code_at(const void* packed, int code_bits, int64_t index) {
  if (code_bits == 8) return static_cast<const int8_t*>(packed)[index];
  const int nibble = static_cast<const uint8_t*>(packed)[index / 2] >> (index % 2 * 4) & 0xf;
  return (nibble ^ 8) - 8;
}

class CpuEmbedding final : public Kernel {
 public:
  CpuEmbedding(const Node& node, int32_t code_bits) : attributes_(read_attributes(node, code_bits)) {}

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    const EmbeddingProblem& problem = call.problem();
    const EmbeddingTensors& tensors = call.tensors();
    for (int64_t row = 0; row < problem.rows; ++row) {
      const int64_t id = tensors.ids[row];
      if (id < 0 || id >= problem.vocabulary) {
        throw Failure(std::string(name_of(attributes_)) + ": id " + std::to_string(id) + " is not one of the " +
                      std::to_string(problem.vocabulary) + " rows");
      }
      const int64_t first_group = id * problem.groups();
      const std::vector<double> scales = load_numbers(tensors.scales, call.type(), first_group, problem.groups());
      std::vector<double> y(problem.width);
      for (int64_t i = 0; i < problem.width; ++i) {
        const int64_t group = i / problem.group_size;
        const int zero = tensors.zeros != nullptr ? code_at(tensors.zeros, problem.code_bits, first_group + group) : 0;
        y[i] = scales[group] * (code_at(tensors.codes, problem.code_bits, id * problem.width + i) - zero);
      }
      store_numbers(y.data(), problem.width, call.type(), tensors.y, row * problem.width);
    }
  }

 private:
  const Attributes attributes_;
};

template <typename EmbeddingKernel, int kBits>
class EmbeddingOperator final : public CustomOperator {
 public:
  EmbeddingOperator(const char* provider, abi::ElementType type)
      : provider_(provider),
        inputs_{{type, false},
                {kBits == 8 ? abi::ElementType::kInt8 : abi::ElementType::kInt4, false},
                {abi::ElementType::kInt64, false},
                {abi::ElementType::kUndefined, true}},  // zeros, of the codes' type
        outputs_{{type, false}} {}

  const char* name() const override { return name_of(kAttributes); }
  const char* provider() const override { return provider_; }
  const std::vector<Argument>& inputs() const override { return inputs_; }
  const std::vector<Argument>& outputs() const override { return outputs_; }

  void infer_shapes(const ShapeInference& shapes) const override {
    std::vector<Dimension> shape = shapes.input(rules::kIds);
    const std::vector<Dimension> codes = shapes.input(rules::kCodes);
    if (shape.empty() || codes.empty()) return;
    ErrorText error;
    require(rules::check_ranks(kAttributes, static_cast<int32_t>(codes.size()), &error), error);
    shape.push_back(codes.back());
    shapes.set_output_like_first_input(0, shape);
  }

  std::unique_ptr<Kernel> create_kernel(const Node& node) const override {
    return std::make_unique<EmbeddingKernel>(node, kBits);
  }

 private:
  static constexpr Attributes kAttributes = {0, 0, kBits};  // only the width of codes is known of them
  const char* const provider_;
  const std::vector<Argument> inputs_;
  const std::vector<Argument> outputs_;
};

}  // namespace

std::vector<std::unique_ptr<CustomOperator>> make_w4a16_embedding_operators() {
  return make_for_all_types<EmbeddingOperator<CudaEmbedding, 4>, EmbeddingOperator<CpuEmbedding, 4>>();
}

std::vector<std::unique_ptr<CustomOperator>> make_w8a16_embedding_operators() {
  return make_for_all_types<EmbeddingOperator<CudaEmbedding, 8>, EmbeddingOperator<CpuEmbedding, 8>>();
}

}  // namespace ort
}  // namespace awq2trt
