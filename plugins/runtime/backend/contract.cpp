// See contract.h.
#include "backend/contract.h"

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

constexpr char kLayout[] = "bhcd";  // batch, heads, positions, channels
constexpr size_t kHeadsAxis = 1, kPositionsAxis = 2, kChannelsAxis = 3;
constexpr int64_t kLargestSize = int64_t{1} << 24;  // of an axis; keeps products of three within 64 bits

[[noreturn]] void unsupported(const std::string& what, const std::string& where) {
  throw Error(ErrorCode::kUnsupported, what, where,
              "use a later version of this library; `awq2trt run` runs every model that awq2trt builds.");
}

Number number_of(const std::string& dtype, const std::string& where) {
  if (dtype == "float32") return Number::kFloat32;
  if (dtype == "float16") return Number::kFloat16;
  if (dtype == "bfloat16") return Number::kBFloat16;
  unsupported("numbers of type " + dtype, where);
}

void take_cache_sizes(const TensorRecord& past, const GraphRecord& graph, Contract* contract,
                      const std::string& where) {
  if (past.shape.size() != 4) unsupported("a cache of " + std::to_string(past.shape.size()) + " axes", where);
  const int64_t positions = past.shape[kPositionsAxis];
  contract->heads = past.shape[kHeadsAxis];
  contract->head_dim = past.shape[kChannelsAxis];
  contract->free_capacity = positions == TensorRecord::kFree;
  const auto sized = [](int64_t size) { return size > 0 && size <= kLargestSize; };
  if (!sized(contract->heads) || !sized(contract->head_dim) || !sized(graph.capacity) ||
      (!contract->free_capacity && positions != graph.capacity)) {
    unsupported("a cache of these sizes", where + ": " + past.name);
  }
}

// Whether two caches have the same sizes and numbers.
bool alike(const TensorRecord& one, const TensorRecord& other) {
  return one.shape == other.shape && one.dtype == other.dtype;
}

}  // namespace

size_t Contract::cache_bytes(int64_t positions) const {
  return bytes_of(number) * static_cast<size_t>(heads) * static_cast<size_t>(positions) * static_cast<size_t>(head_dim);
}

Contract read_contract(const GraphRecord& graph, const std::string& where) {
  if (graph.cache_layout != kLayout) unsupported("a cache of layout " + graph.cache_layout, where);
  Contract contract{};
  contract.capacity = graph.capacity;
  contract.number = number_of(graph.cache_dtype, where);
  const TensorRecord* first = nullptr;
  size_t pasts = 0;
  bool ids = false, position = false, logits = false;
  for (const TensorRecord& input : graph.inputs) {
    if (input.name == kInputIds || input.name == kCachePosition) {
      (input.name == kInputIds ? ids : position) = true;
      if (input.dtype != "int64") unsupported(input.name + " of type " + input.dtype, where);
    } else if (input.name.rfind("past_", 0) == 0 && input.dtype == graph.cache_dtype) {
      ++pasts;
      if (first == nullptr) take_cache_sizes(*(first = &input), graph, &contract, where);
      if (!alike(input, *first)) unsupported("caches of several sizes", where + ": " + input.name);
    } else {
      unsupported("a decoder with the input " + input.name, where);
    }
  }
  for (const TensorRecord& output : graph.outputs) {
    if (!output.alias.empty()) {
      contract.caches.push_back({output.alias, output.name});
    } else if (output.name == kLogits) {
      logits = output.shape.size() == 3 && output.dtype == graph.cache_dtype && output.shape[2] > 0 &&
               output.shape[2] <= kLargestSize;
      if (!logits) unsupported("logits of these sizes", where);
      contract.vocab_size = output.shape[2];
      contract.all_rows = output.shape[1] != 1;
    } else if (output.name == kNextToken && output.dtype == "int64") {
      contract.next_token = true;
    } else {
      unsupported("a decoder with the output " + output.name, where);
    }
  }
  if (!ids || !position || !logits || pasts == 0 || pasts != contract.caches.size()) {
    unsupported("a decoder without tokens, their position, scores, or caches in pairs", where);
  }
  return contract;
}

}  // namespace awq2trt
