// CachedAttention behind CustomOperator; see cached_attention_op.h. Names, shapes and the kernels' problem come from
// ops/cached_attention.h.
#include "ort/cached_attention_op.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "kernels/cached_attention/reference.h"
#include "ops/cached_attention.h"
#include "ort/gpu.h"
#include "ort/host_numbers.h"

namespace awq2trt {
namespace ort {
namespace {

using cached_attention::Attributes;

// How a cache stores numbers; ONNX Runtime tells operators of the same name apart by their types.
enum class Cache { kAsActivations, kCodes };

// The node's attributes, after a check that they fit its number of inputs.
Attributes read_attributes(const Node& node, Cache cache) {
  const Attributes attributes = {node.integer_attribute(cached_attention::kNumHeads),
                                 node.integer_attribute(cached_attention::kNumKvHeads),
                                 node.integer_attribute(cached_attention::kRotaryDim),
                                 node.integer_attribute(cached_attention::kInterleaved),
                                 node.integer_attribute(cached_attention::kWindow),
                                 node.integer_attribute(cached_attention::kHasNorms),
                                 node.integer_attribute(cached_attention::kHasAlibi),
                                 node.float_attribute(cached_attention::kScale),
                                 node.float_attribute(cached_attention::kSoftcap),
                                 node.float_attribute(cached_attention::kClip),
                                 node.float_attribute(cached_attention::kNormEps),
                                 cache == Cache::kCodes ? node.integer_attribute(cached_attention::kHasCacheScales) : 0,
                                 node.optional_integer_attribute(cached_attention::kHasVisibleEnd)};
  ErrorText error;
  require(cached_attention::check_attributes(attributes, &error), error);
  require(cached_attention::check_input_count(attributes, static_cast<int32_t>(node.input_count()), &error), error);
  return attributes;
}

// A node's tensors in one call, checked against each other and against the attributes.
class Call {
 public:
  Call(const Attributes& attributes, const Context& context) {
    ErrorText error;
    const int32_t count = cached_attention::input_count(attributes);
    inputs_.reserve(count);
    Shape shapes[cached_attention::kMaxInputs];
    for (int32_t i = 0; i < count; ++i) {
      inputs_.push_back(context.input(i));
      shapes[i] = inputs_[i].shape();
      require(cached_attention::check_type(attributes, i, inputs_[i].type(), qkv().type(), &error), error);
    }
    require(cached_attention::describe_problem(attributes, shapes, qkv().type(), &problem_, &error), error);
    find_inputs(attributes);
    const int64_t y_sizes[] = {problem_.batch, problem_.tokens, int64_t{problem_.heads} * problem_.head_dim};
    tensors_.y = context.output(cached_attention::kY, {y_sizes, 3});
    const auto present = [&](int32_t output) {
      return context.output(output, shapes[cached_attention::past_of(attributes, output)]);
    };
    tensors_.present_key = present(cached_attention::kPresentKey);
    tensors_.present_value = present(cached_attention::kPresentValue);
    if (attributes.has_cache_scales != 0) {
      tensors_.present_key_scale = present(cached_attention::kPresentKeyScale);
      tensors_.present_value_scale = present(cached_attention::kPresentValueScale);
    }
  }

  const InputTensor& qkv() const { return inputs_[cached_attention::kQkv]; }
  const AttentionProblem& problem() const { return problem_; }
  const AttentionTensors& tensors() const { return tensors_; }  // without workspace

 private:
  void find_inputs(const Attributes& attributes) {
    const auto data = [this](int32_t input) { return inputs_[input].data(); };
    tensors_.qkv = data(cached_attention::kQkv);
    tensors_.position = static_cast<const int64_t*>(data(cached_attention::kPosition));
    tensors_.past_key = data(cached_attention::kPastKey);
    tensors_.past_value = data(cached_attention::kPastValue);
    if (problem_.rotary_dim != 0) {
      tensors_.cos = data(cached_attention::cos_input(attributes));
      tensors_.sin = data(cached_attention::cos_input(attributes) + 1);
    }
    if (problem_.has_norms) {
      tensors_.query_norm = data(cached_attention::query_norm_input(attributes));
      tensors_.key_norm = data(cached_attention::query_norm_input(attributes) + 1);
    }
    if (problem_.has_alibi) {
      tensors_.alibi = static_cast<const float*>(data(cached_attention::alibi_input(attributes)));
    }
    if (problem_.has_visible_end) {
      tensors_.visible_end = static_cast<const int64_t*>(data(cached_attention::visible_end_input(attributes)));
    }
    if (attributes.has_cache_scales != 0) {
      tensors_.past_key_scale = data(cached_attention::cache_scale_input(attributes));
      tensors_.past_value_scale = data(cached_attention::cache_scale_input(attributes) + 1);
    }
  }

  std::vector<InputTensor> inputs_;
  AttentionProblem problem_ = {};
  AttentionTensors tensors_ = {};
};

class CudaAttention final : public Kernel {
 public:
  CudaAttention(const Node& node, Cache cache) : attributes_(read_attributes(node, cache)) {}

  void compute(const Context& context) override {
    const Call call(attributes_, context);
    const AttentionConfig config = config_of(call.problem());
    const Scratch workspace(context, call.qkv(), config.workspace_bytes);
    AttentionTensors tensors = call.tensors();
    tensors.workspace = workspace.data();
    throw_if_cuda_error(
        launch_cached_attention(call.problem(), config, tensors, static_cast<cudaStream_t>(context.stream())),
        cached_attention::kName);
  }

 private:
  struct Known {
    int capacity;  // for which the configuration was chosen; callers rarely change it
    AttentionConfig config;
  };

  AttentionConfig config_of(const AttentionProblem& problem) {
    const Device& device = device_.get();
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [known, is_new] = configs_.try_emplace({problem.batch, problem.tokens});
    if (is_new || known->second.capacity != problem.capacity) {
      known->second = {problem.capacity, choose_config(problem, device)};
    }
    return known->second.config;
  }

  const Attributes attributes_;
  NodeDevice device_{cached_attention::kName};
  std::mutex mutex_;
  std::map<std::pair<int, int>, Known> configs_;  // by B and S
};

// A call on the CPU. The reference sees only the slots of the cache up to the last new one: later slots may hold
// anything, and widening them would take time.
class CpuCall {
 public:
  CpuCall(const Call& call) : problem_(call.problem()), tensors_(call.tensors()), type_(call.qkv().type()) {
    for (int b = 0; b < problem_.batch; ++b) {
      const int64_t position = tensors_.position[b];
      if (position < 0 || position > problem_.capacity - problem_.tokens) {
        throw Failure(std::string(cached_attention::kName) + ": " + std::to_string(problem_.tokens) +
                          " tokens from position " + std::to_string(position) + " do not fit the cache of " +
                          std::to_string(problem_.capacity),
                      abi::ErrorCode::kInvalidArgument);
      }
      slots_ = std::max(slots_, position + problem_.tokens);
    }
  }

  void compute() const {
    const size_t slots = static_cast<size_t>(cache_rows()) * problem_.capacity;
    copy_past(tensors_.past_key, tensors_.present_key, slots * slot_bytes());
    copy_past(tensors_.past_value, tensors_.present_value, slots * slot_bytes());
    if (has_codes()) {
      copy_past(tensors_.past_key_scale, tensors_.present_key_scale, slots * number_bytes());
      copy_past(tensors_.past_value_scale, tensors_.present_value_scale, slots * number_bytes());
    }
    if (problem_.batch == 0 || problem_.tokens == 0) return;
    AttentionProblem problem = problem_;
    problem.capacity = static_cast<int>(slots_);
    const int64_t row = int64_t{problem_.heads + 2 * problem_.kv_heads} * problem_.head_dim;
    const int64_t table = slots_ * (problem_.rotary_dim / 2);
    const int64_t gains = problem_.has_norms ? problem_.head_dim : 0;
    const auto load = [this](const void* tensor, int64_t count) { return load_numbers(tensor, type_, 0, count); };
    std::vector<int64_t> ends;
    if (problem_.has_visible_end) ends.assign(tensors_.visible_end, tensors_.visible_end + slots_);
    const AttentionReference result = attention_reference(
        problem, load(tensors_.qkv, problem_.batch * problem_.tokens * row),
        std::vector<int64_t>(tensors_.position, tensors_.position + problem_.batch), load(tensors_.cos, table),
        load(tensors_.sin, table), load(tensors_.query_norm, gains), load(tensors_.key_norm, gains),
        load_numbers(tensors_.alibi, ElementType::kFloat32, 0, problem_.has_alibi ? problem_.heads : 0),
        load_cache(tensors_.present_key, tensors_.present_key_scale),
        load_cache(tensors_.present_value, tensors_.present_value_scale), rounding_to(type_), ends);
    store_numbers(result.y.data(), static_cast<int64_t>(result.y.size()), type_, tensors_.y, 0);
    if (has_codes()) {
      store_new_codes(result.keys, result.key_scales, tensors_.present_key, tensors_.present_key_scale);
      store_new_codes(result.values, result.value_scales, tensors_.present_value, tensors_.present_value_scale);
    } else {
      store_new_slots(result.keys, tensors_.present_key, problem_.head_dim);
      store_new_slots(result.values, tensors_.present_value, problem_.head_dim);
    }
  }

 private:
  int64_t cache_rows() const { return int64_t{problem_.batch} * problem_.kv_heads; }  // of `capacity` slots
  bool has_codes() const { return problem_.cache_type == CacheType::kInt8; }
  size_t number_bytes() const { return static_cast<size_t>(bytes_of_number(type_)); }
  size_t slot_bytes() const { return static_cast<size_t>(problem_.head_dim) * (has_codes() ? 1 : number_bytes()); }

  static void copy_past(const void* past, void* present, size_t bytes) {
    if (past != present) std::memcpy(present, past, bytes);
  }

  // [B, Hkv, slots_, D]; only codes have `scales`.
  std::vector<double> load_cache(const void* cache, const void* scales) const {
    std::vector<double> numbers;
    for (int64_t row = 0; row < cache_rows(); ++row) {
      const int64_t first = row * problem_.capacity, d = problem_.head_dim;
      if (has_codes()) {
        const auto* const codes = static_cast<const int8_t*>(cache) + first * d;
        const std::vector<double> of_slots = load_numbers(scales, type_, first, slots_);
        for (int64_t i = 0; i < slots_ * d; ++i) numbers.push_back(codes[i] * of_slots[i / d]);
      } else {
        const std::vector<double> slots = load_numbers(cache, type_, first * d, slots_ * d);
        numbers.insert(numbers.end(), slots.begin(), slots.end());
      }
    }
    return numbers;
  }

  // Stores the new tokens' part of `numbers` [B, Hkv, slots_, length] in a tensor of `capacity` slots.
  void store_new_slots(const std::vector<double>& numbers, void* tensor, int64_t length) const {
    for (int64_t row = 0; row < cache_rows(); ++row) {
      const int64_t position = tensors_.position[row / problem_.kv_heads];
      store_numbers(&numbers[(row * slots_ + position) * length], problem_.tokens * length, type_, tensor,
                    (row * problem_.capacity + position) * length);
    }
  }

  // A number that was quantized is exactly its code times the scale.
  void store_new_codes(const std::vector<double>& numbers, const std::vector<double>& scales, void* codes,
                       void* stored_scales) const {
    store_new_slots(scales, stored_scales, 1);
    const int64_t d = problem_.head_dim;
    for (int64_t row = 0; row < cache_rows(); ++row) {
      const int64_t position = tensors_.position[row / problem_.kv_heads];
      const double* const from = &numbers[(row * slots_ + position) * d];
      auto* const to = static_cast<int8_t*>(codes) + (row * problem_.capacity + position) * d;
      for (int64_t i = 0; i < problem_.tokens * d; ++i) {
        const double scale = scales[row * slots_ + position + i / d];
        to[i] = scale == 0.0 ? int8_t{0} : static_cast<int8_t>(std::lround(from[i] / scale));
      }
    }
  }

  const AttentionProblem problem_;
  const AttentionTensors tensors_;
  const ElementType type_;
  int64_t slots_ = 0;
};

class CpuAttention final : public Kernel {
 public:
  CpuAttention(const Node& node, Cache cache) : attributes_(read_attributes(node, cache)) {}

  void compute(const Context& context) override { CpuCall(Call(attributes_, context)).compute(); }

 private:
  const Attributes attributes_;
};

template <typename AttentionKernelOfProvider, Cache cache>
class CachedAttentionOperator final : public CustomOperator {
 public:
  CachedAttentionOperator(const char* provider, abi::ElementType type)
      : provider_(provider),
        // Optional inputs are cosines, sines, gains and scales of `type`, slopes of fp32 and ends of int64, in any
        // combination (FORMAT.md).
        inputs_{{type, false}, {abi::ElementType::kInt64, false}, {cache_type(type), false}, {cache_type(type), false}},
        outputs_{{type, false}, {cache_type(type), false}, {cache_type(type), false}, {type, true}, {type, true}} {
    inputs_.resize(cached_attention::kMaxInputs, {abi::ElementType::kUndefined, true});
  }

  const char* name() const override { return cached_attention::kName; }
  const char* provider() const override { return provider_; }
  const std::vector<Argument>& inputs() const override { return inputs_; }
  const std::vector<Argument>& outputs() const override { return outputs_; }

  void infer_shapes(const ShapeInference& shapes) const override {
    std::vector<Dimension> shape = shapes.input(cached_attention::kQkv);
    const std::vector<Dimension> past = shapes.input(cached_attention::kPastKey);
    if (shape.empty() || past.empty()) return;
    ErrorText error;
    require(
        cached_attention::check_ranks(static_cast<int32_t>(shape.size()), static_cast<int32_t>(past.size()), &error),
        error);
    const int64_t kv_heads = past[1].size, head_dim = past[3].size;
    const bool known = shape.back().size >= 0 && kv_heads >= 0 && head_dim >= 0;
    shape.back() = {known ? shape.back().size - 2 * kv_heads * head_dim : -1, ""};
    shapes.set_output_like_first_input(cached_attention::kY, shape);
    shapes.set_output_like(cached_attention::kPastKey, cached_attention::kPresentKey, past);
    shapes.set_output_like(cached_attention::kPastValue, cached_attention::kPresentValue, past);
  }

  std::unique_ptr<Kernel> create_kernel(const Node& node) const override {
    return std::make_unique<AttentionKernelOfProvider>(node, cache);
  }

 private:
  static abi::ElementType cache_type(abi::ElementType type) {
    return cache == Cache::kCodes ? abi::ElementType::kInt8 : type;
  }

  const char* const provider_;
  std::vector<Argument> inputs_;
  const std::vector<Argument> outputs_;
};

template <Cache cache>
std::vector<std::unique_ptr<CustomOperator>> make_of_cache() {
  return make_for_all_types<CachedAttentionOperator<CudaAttention, cache>,
                            CachedAttentionOperator<CpuAttention, cache>>();
}

}  // namespace

std::vector<std::unique_ptr<CustomOperator>> make_cached_attention_operators() {
  std::vector<std::unique_ptr<CustomOperator>> operators = make_of_cache<Cache::kAsActivations>();
  for (std::unique_ptr<CustomOperator>& each : make_of_cache<Cache::kCodes>()) operators.push_back(std::move(each));
  return operators;
}

}  // namespace ort
}  // namespace awq2trt
