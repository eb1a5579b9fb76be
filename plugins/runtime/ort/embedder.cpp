// See embedder.h.
#include "ort/embedder.h"

#include "backend/buffer.h"

namespace awq2trt {
namespace ort {

EmbeddingGraph::EmbeddingGraph(std::shared_ptr<const Session> session, int64_t hidden_size)
    : session_(std::move(session)), hidden_size_(hidden_size), options_(session_->run_options({})) {}

void EmbeddingGraph::embed(const int32_t* ids, size_t count, float* rows) const {
  std::vector<int64_t> wide(ids, ids + count);
  const auto length = static_cast<int64_t>(count);
  Binding binding(session_, kHostPlace);
  binding.bind_input(kInputIds, wide.data(), abi::ElementType::kInt64, {1, length});
  binding.bind_output(kInputsEmbeds, rows, abi::ElementType::kFloat, {1, length, hidden_size_});
  binding.run(options_.get());
}

VisionGraph::VisionGraph(std::shared_ptr<const Session> session, const VisionContract& contract)
    : session_(std::move(session)), contract_(contract), options_(session_->run_options({})) {}

void VisionGraph::check(const std::vector<float>& pixels) const {
  if (pixels.size() == contract_.pixels_count()) return;
  throw Error(ErrorCode::kMalformed,
              "got " + std::to_string(pixels.size()) + " numbers of an image, expected " +
                  std::to_string(contract_.pixels_count()),
              kPixelValues, "");
}

std::vector<float> VisionGraph::see(const std::vector<float>& pixels) const {
  check(pixels);
  std::vector<char> input(pixels_bytes()), output(embeddings_bytes());
  narrow(pixels.data(), contract_.pixels, pixels.size(), input.data());
  run(input.data(), output.data(), kHostPlace);
  return widened(output.data());
}

std::vector<float> VisionGraph::see(const std::vector<float>& pixels, DeviceMemory* memory) const {
  check(pixels);
  const Buffer staged_input(memory, Buffer::Kind::kHost, pixels_bytes());
  const Buffer staged_output(memory, Buffer::Kind::kHost, embeddings_bytes());
  const Buffer input(memory, Buffer::Kind::kDevice, pixels_bytes());
  const Buffer output(memory, Buffer::Kind::kDevice, embeddings_bytes());
  narrow(pixels.data(), contract_.pixels, pixels.size(), staged_input.get());
  memory->write(input.get(), staged_input.get(), pixels_bytes());
  run(input.get(), output.get(), {memory->runtime_name(), memory->index()});
  memory->read(staged_output.get(), output.get(), embeddings_bytes());
  memory->synchronize();
  return widened(staged_output.get());
}

void VisionGraph::run(void* pixels, void* embeddings, const Place& place) const {
  const VisionContract& sizes = contract_;
  Binding binding(session_, place);
  binding.bind_input(kPixelValues, pixels, element_type(sizes.pixels), {1, kChannels, sizes.side, sizes.side});
  binding.bind_output(kImageEmbeddings, embeddings, element_type(sizes.embeddings),
                      {1, sizes.pieces, sizes.hidden_size});
  binding.run(options_.get());
}

std::vector<float> VisionGraph::widened(const void* embeddings) const {
  std::vector<float> rows(contract_.embeddings_count());
  widen(embeddings, contract_.embeddings, rows.size(), rows.data());
  return rows;
}

}  // namespace ort
}  // namespace awq2trt
