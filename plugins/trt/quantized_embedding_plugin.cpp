// awq2trt::W4A16Embedding and W8A16Embedding as TensorRT plugins: their rules (ops/quantized_embedding.h) and kernel
// (kernels/quantized_embedding/) behind OperatorPlugin.
#include <cstddef>

#include "kernels/quantized_embedding/quantized_embedding.h"
#include "ops/quantized_embedding.h"
#include "trt/creators.h"
#include "trt/operator_plugin.h"

namespace awq2trt {
namespace {

namespace rules = quantized_embedding;
using nvinfer1::DimsExprs;
using nvinfer1::PluginFieldType;

template <int kBits>
struct EmbeddingOperator {
  struct Attributes : rules::Attributes {
    Attributes() : rules::Attributes{0, 0, kBits} {}
  };
  using Problem = EmbeddingProblem;
  struct Config {
    bool overlap;
  };

  static constexpr const char* kName = kBits == 8 ? rules::kName8 : rules::kName4;
  static constexpr const char* kVersion = rules::kVersion;
  static constexpr int32_t kMaxInputs = rules::kMaxInputs;
  static constexpr AttributeField kFields[] = {
      {rules::kGroupSize, PluginFieldType::kINT32, offsetof(rules::Attributes, group_size)},
      {rules::kHasZeros, PluginFieldType::kINT32, offsetof(rules::Attributes, has_zeros)}};

  static int32_t output_count(const Attributes&) { return 1; }
  static int32_t aliased_input(const Attributes&, int32_t) { return -1; }

  static bool check_attributes(const Attributes& attributes, ErrorText* error) {
    return rules::check_attributes(attributes, error);
  }
  static bool check_inputs(const Attributes& attributes, int32_t count, ErrorText* error) {
    return rules::check_input_count(attributes, count, error);
  }
  static bool check_type(const Attributes& attributes, int32_t tensor, ElementType type, ElementType scales_type,
                         ErrorText* error) {
    return rules::check_type(attributes, tensor, type, scales_type, error);
  }

  static bool infer_shapes(const Attributes& attributes, const DimsExprs* inputs, DimsExprs* outputs,
                           nvinfer1::IExprBuilder&, ErrorText* error) {
    const DimsExprs &ids = inputs[rules::kIds], &codes = inputs[rules::kCodes];
    if (!rules::check_ranks(attributes, codes.nbDims, error)) return false;
    if (ids.nbDims >= nvinfer1::Dims::MAX_DIMS) {
      return fail(error, "%s: ids with %d dimensions leave none for the rows", kName, ids.nbDims);
    }
    outputs[0] = ids;
    outputs[0].nbDims = ids.nbDims + 1;
    outputs[0].d[ids.nbDims] = codes.d[1];
    return true;
  }

  static bool describe_problem(const Attributes& attributes, const Shape* inputs, ElementType scales_type,
                               Problem* problem, ErrorText* error) {
    return rules::describe_problem(attributes, inputs, scales_type, problem, error);
  }

  static size_t workspace_bytes(const Problem&) { return 0; }
  static Config choose(const Problem&, const Device& device) { return {can_overlap(device)}; }

  static cudaError_t launch(const Attributes& attributes, const Problem& problem, const Config& config,
                            const PluginBuffers& buffers, cudaStream_t stream) {
    EmbeddingTensors tensors = {};
    tensors.scales = buffers.inputs[rules::kScales];
    tensors.codes = buffers.inputs[rules::kCodes];
    tensors.ids = static_cast<const int64_t*>(buffers.inputs[rules::kIds]);
    if (attributes.has_zeros != 0) tensors.zeros = buffers.inputs[rules::kZeros];
    tensors.y = buffers.outputs[0];
    return launch_quantized_embedding(problem, tensors, config.overlap, stream);
  }
};

}  // namespace

nvinfer1::IPluginCreatorInterface* w4a16_embedding_creator() {
  static OperatorCreator<EmbeddingOperator<4>> creator;
  return &creator;
}

nvinfer1::IPluginCreatorInterface* w8a16_embedding_creator() {
  static OperatorCreator<EmbeddingOperator<8>> creator;
  return &creator;
}

}  // namespace awq2trt
