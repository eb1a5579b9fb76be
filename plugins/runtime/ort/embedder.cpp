// See embedder.h.
#include "ort/embedder.h"

#include <algorithm>

#include "backend/buffer.h"

namespace awq2trt {
namespace ort {

EmbeddingGraph::EmbeddingGraph(std::shared_ptr<const Session> session, const Contract& decoder)
    : session_(std::move(session)),
      hidden_size_(decoder.hidden_size),
      deepstack_(decoder.deepstack),
      options_(session_->run_options({})) {}

void EmbeddingGraph::embed(const int32_t* ids, size_t count, float* rows) const {
  if (deepstack_ == 0) {
    run(ids, count, rows);
    return;
  }
  std::vector<float> embeddings(count * static_cast<size_t>(hidden_size_));
  run(ids, count, embeddings.data());
  for (const float* from = embeddings.data(); count > 0; --count, from += hidden_size_) {
    rows = std::copy(from, from + hidden_size_, rows);
    rows = std::fill_n(rows, deepstack_, 0.0f);
  }
}

void EmbeddingGraph::run(const int32_t* ids, size_t count, float* embeddings) const {
  std::vector<int64_t> wide(ids, ids + count);
  const auto length = static_cast<int64_t>(count);
  Binding binding(session_, kHostPlace);
  binding.bind_input(kInputIds, wide.data(), abi::ElementType::kInt64, {1, length});
  binding.bind_output(kInputsEmbeds, embeddings, abi::ElementType::kFloat, {1, length, hidden_size_});
  binding.run(options_.get());
}

VisionGraph::VisionGraph(std::shared_ptr<const Session> session, const VisionContract& contract)
    : session_(std::move(session)), contract_(contract), options_(session_->run_options({})) {}

void VisionGraph::check(const PreparedImage& image) const {
  if (contract_.takes(image)) return;
  const std::string expected = contract_.numbers == 0 ? std::to_string(kChannels * contract_.side * contract_.side)
                                                      : "patches of " + std::to_string(contract_.numbers);
  throw Error(ErrorCode::kMalformed,
              "got " + std::to_string(image.pixels.size()) + " numbers of an image, expected " + expected, kPixelValues,
              "");
}

std::vector<float> VisionGraph::see(const PreparedImage& image) const {
  check(image);
  std::vector<char> input(pixels_bytes(image)), output(rows_bytes(image));
  narrow(image.pixels.data(), contract_.pixels, image.pixels.size(), input.data());
  run(image, input.data(), output.data(), kHostPlace);
  return widened(image, output.data());
}

std::vector<float> VisionGraph::see(const PreparedImage& image, DeviceMemory* memory) const {
  check(image);
  const size_t input_bytes = pixels_bytes(image), output_bytes = rows_bytes(image);
  const Buffer staged_input(memory, Buffer::Kind::kHost, input_bytes);
  const Buffer staged_output(memory, Buffer::Kind::kHost, output_bytes);
  const Buffer input(memory, Buffer::Kind::kDevice, input_bytes);
  const Buffer output(memory, Buffer::Kind::kDevice, output_bytes);
  narrow(image.pixels.data(), contract_.pixels, image.pixels.size(), staged_input.get());
  memory->write(input.get(), staged_input.get(), input_bytes);
  run(image, input.get(), output.get(), {memory->runtime_name(), memory->index()});
  memory->read(staged_output.get(), output.get(), output_bytes);
  memory->synchronize();
  return widened(image, staged_output.get());
}

void VisionGraph::run(const PreparedImage& image, void* pixels, void* embeddings, const Place& place) const {
  Binding binding(session_, place);
  binding.bind_input(kPixelValues, pixels, element_type(contract_.pixels), image.shape);
  std::vector<Indices> indices = image.indices;  // ONNX Runtime takes memory that it may change
  for (Indices& each : indices) {
    binding.bind_input(each.name, each.values.data(), abi::ElementType::kInt64, each.shape);
  }
  const bool any_size = contract_.numbers != 0;
  binding.bind_output(kImageEmbeddings, embeddings, element_type(contract_.embeddings),
                      any_size ? std::vector<int64_t>{image.pieces, contract_.width}
                               : std::vector<int64_t>{1, image.pieces, contract_.width});
  binding.run(options_.get());
}

std::vector<float> VisionGraph::widened(const PreparedImage& image, const void* embeddings) const {
  std::vector<float> rows(rows_count(image));
  widen(embeddings, contract_.embeddings, rows.size(), rows.data());
  return rows;
}

}  // namespace ort
}  // namespace awq2trt
