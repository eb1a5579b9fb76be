// See embedder.h.
#include "ort/embedder.h"

#include <algorithm>
#include <optional>

#include "backend/buffer.h"

namespace awq2trt {
namespace ort {
namespace {

// Memory that the host fills or reads, and that a graph reads or fills: the same, or with a device another one, between
// which there are copies.
class Staged {
 public:
  Staged(DeviceMemory* device, size_t bytes) : device_(device), bytes_(bytes) {
    if (device == nullptr) {
      plain_ = std::make_unique<char[]>(bytes);
      return;
    }
    staged_.emplace(device, Buffer::Kind::kHost, bytes);
    placed_.emplace(device, Buffer::Kind::kDevice, bytes);
  }

  void* host() const { return device_ == nullptr ? plain_.get() : staged_->get(); }
  void* bound() const { return device_ == nullptr ? plain_.get() : placed_->get(); }
  void write() const {
    if (device_ != nullptr) device_->write(bound(), host(), bytes_);
  }
  // Waits until it is read.
  void read() const {
    if (device_ == nullptr) return;
    device_->read(host(), bound(), bytes_);
    device_->synchronize();
  }

 private:
  DeviceMemory* device_;
  size_t bytes_;
  std::unique_ptr<char[]> plain_;  // without a device
  std::optional<Buffer> staged_, placed_;
};

}  // namespace

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

std::vector<float> VisionGraph::see(const PreparedImage& image, DeviceMemory* device) const {
  check(image);
  const auto calls = static_cast<size_t>(contract_.calls(image));
  const int64_t rows = contract_.rows_of_call(image);
  const size_t numbers = image.pixels.size() / calls, made = static_cast<size_t>(rows * contract_.width);
  std::vector<int64_t> input = image.shape, output = {rows, contract_.width};
  if (contract_.numbers == 0) {
    input[0] = 1;
    output.insert(output.begin(), 1);
  }
  Binding binding(session_, device == nullptr ? kHostPlace : Place{device->runtime_name(), device->index()});
  const Staged pixels(device, numbers * bytes_of(contract_.pixels));
  const Staged embeddings(device, made * bytes_of(contract_.embeddings));
  binding.bind_input(kPixelValues, pixels.bound(), element_type(contract_.pixels), input);
  binding.bind_output(kImageEmbeddings, embeddings.bound(), element_type(contract_.embeddings), output);
  std::vector<Indices> indices = image.indices;  // ONNX Runtime takes memory that it may change
  for (Indices& each : indices) {
    binding.bind_input(each.name, each.values.data(), abi::ElementType::kInt64, each.shape, kHostPlace);
  }
  std::vector<float> seen(calls * made);
  for (size_t call = 0; call < calls; ++call) {
    narrow(image.pixels.data() + call * numbers, contract_.pixels, numbers, pixels.host());
    pixels.write();
    binding.run(options_.get());
    embeddings.read();
    widen(embeddings.host(), contract_.embeddings, made, seen.data() + call * made);
  }
  return image.order.empty() ? seen : in_order(image, seen);
}

// The rows that are the pieces.
std::vector<float> VisionGraph::in_order(const PreparedImage& image, const std::vector<float>& rows) const {
  std::vector<float> pieces;
  pieces.reserve(image.order.size() * static_cast<size_t>(contract_.width));
  for (const int64_t row : image.order) {
    const auto from = rows.begin() + row * contract_.width;
    pieces.insert(pieces.end(), from, from + contract_.width);
  }
  return pieces;
}

}  // namespace ort
}  // namespace awq2trt
