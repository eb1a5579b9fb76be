// See embedder.h.
#include "ort/embedder.h"

#include "backend/beside.h"
#include "backend/staged.h"

namespace awq2trt {
namespace ort {

EmbeddingGraph::EmbeddingGraph(std::shared_ptr<const Session> session, const Contract& decoder)
    : session_(std::move(session)), decoder_(decoder), options_(session_->run_options({})) {}

void EmbeddingGraph::embed(const int32_t* ids, size_t count, float* rows) const {
  embed_rows(decoder_, count, rows, [&](float* embeddings) { run(ids, count, embeddings); });
}

void EmbeddingGraph::run(const int32_t* ids, size_t count, float* embeddings) const {
  std::vector<int64_t> wide(ids, ids + count);
  const auto length = static_cast<int64_t>(count);
  Binding binding(session_, kHostPlace);
  binding.bind_input(kInputIds, wide.data(), abi::ElementType::kInt64, {1, length});
  binding.bind_output(kInputsEmbeds, embeddings, abi::ElementType::kFloat, {1, length, decoder_.hidden_size});
  binding.run(options_.get());
}

VisionGraph::VisionGraph(std::shared_ptr<const Session> session, const VisionContract& contract)
    : session_(std::move(session)), contract_(contract), options_(session_->run_options({})) {}

std::vector<float> VisionGraph::see(const PreparedImage& image, DeviceMemory* device) const {
  const VisionCall call = call_of(contract_, image);
  Binding binding(session_, device == nullptr ? kHostPlace : Place{device->runtime_name(), device->index()});
  const Staged pixels(device, call.numbers * bytes_of(contract_.pixels));
  const Staged embeddings(device, call.made * bytes_of(contract_.embeddings));
  binding.bind_input(kPixelValues, pixels.bound(), element_type(contract_.pixels), call.pixels);
  binding.bind_output(kImageEmbeddings, embeddings.bound(), element_type(contract_.embeddings), call.embeddings);
  std::vector<Indices> indices = image.indices;  // ONNX Runtime takes memory that it may change
  for (Indices& each : indices) {
    binding.bind_input(each.name, each.values.data(), abi::ElementType::kInt64, each.shape, kHostPlace);
  }
  return see_in_calls(contract_, image, call, [&](const float* from, float* seen) {
    narrow(from, contract_.pixels, call.numbers, pixels.host());
    pixels.write(pixels.bytes());
    binding.run(options_.get());
    embeddings.read(embeddings.bytes());
    widen(embeddings.host(), contract_.embeddings, call.made, seen);
  });
}

}  // namespace ort
}  // namespace awq2trt
