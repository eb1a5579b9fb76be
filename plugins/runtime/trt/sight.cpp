// See sight.h.
#include "trt/sight.h"

#include <algorithm>
#include <string>

#include "backend/beside.h"
#include "images/patches.h"

namespace awq2trt {
namespace trt {

void EmbeddingEngine::embed(const int32_t* ids, size_t count, float* rows) {
  const auto longest = static_cast<size_t>(engine_.longest()), hidden = static_cast<size_t>(decoder_.hidden_size);
  embed_rows(decoder_, count, rows, [&](float* embeddings) {
    for (size_t begin = 0; begin < count; begin += longest) {
      call(ids + begin, std::min(longest, count - begin), embeddings + begin * hidden);
    }
  });
}

void EmbeddingEngine::call(const int32_t* ids, size_t count, float* embeddings) {
  const auto length = static_cast<int64_t>(count);
  const size_t numbers = count * static_cast<size_t>(decoder_.hidden_size);
  if (count > room_) {
    room_ = 0;  // also if there is no memory for more
    ids_.emplace(&memory_, sizeof(int64_t) * count);
    embeddings_.emplace(&memory_, bytes_of(type_) * numbers);
    room_ = count;
  }
  std::copy(ids, ids + count, static_cast<int64_t*>(ids_->host()));
  ids_->write(sizeof(int64_t) * count);
  Context& context = engine_.context_for(length);
  context.set_shape(kInputIds, {1, length});
  context.set_address(kInputIds, ids_->bound());
  context.set_address(kInputsEmbeds, embeddings_->bound());
  context.enqueue(memory_.stream());
  embeddings_->read(bytes_of(type_) * numbers);
  widen(embeddings_->host(), type_, numbers, embeddings);
}

VisionEngine::VisionEngine(std::unique_ptr<Engine> engine, const std::vector<ImageProfileRecord>& profiles,
                           const VisionContract& contract, DeviceMemory* memory)
    : engine_(std::move(engine)), profiles_(profiles), contract_(contract), memory_(*memory) {
  for (size_t i = 0; i < profiles_.size(); ++i) {
    contexts_.push_back(engine_->new_context(static_cast<int32_t>(i), memory_.stream()));
  }
}

std::vector<float> VisionEngine::see(const PreparedImage& image) const {
  const VisionCall call = call_of(contract_, image);
  Context& context = context_for(image);
  const Staged pixels(&memory_, call.numbers * bytes_of(contract_.pixels));
  const Staged embeddings(&memory_, call.made * bytes_of(contract_.embeddings));
  context.set_shape(kPixelValues, call.pixels);
  context.set_address(kPixelValues, pixels.bound());
  context.set_address(kImageEmbeddings, embeddings.bound());
  std::vector<Staged> indices;
  for (const Indices& each : image.indices) {
    const Staged& staged = indices.emplace_back(&memory_, sizeof(int64_t) * each.values.size());
    std::copy(each.values.begin(), each.values.end(), static_cast<int64_t*>(staged.host()));
    staged.write(staged.bytes());
    context.set_shape(each.name, each.shape);
    context.set_address(each.name, staged.bound());
  }
  return see_in_calls(contract_, image, call, [&](const float* from, float* seen) {
    narrow(from, contract_.pixels, call.numbers, pixels.host());
    pixels.write(pixels.bytes());
    context.enqueue(memory_.stream());
    embeddings.read(embeddings.bytes());
    widen(embeddings.host(), contract_.embeddings, call.made, seen);
  });
}

// That of the narrowest profile that takes an image, or each of its tiles.
Context& VisionEngine::context_for(const PreparedImage& image) const {
  int64_t patches = 1, windows = 1;
  if (contract_.numbers != 0) patches = image.shape[0];
  for (const Indices& each : image.indices) {
    if (each.name == kWindowPatches) windows = each.shape[0];
  }
  const ImageProfileRecord* best = nullptr;
  for (const ImageProfileRecord& profile : profiles_) {
    const bool fits = profile.patches.takes(patches) && profile.windows.takes(windows);
    if (fits && (best == nullptr || profile.patches.longest < best->patches.longest)) best = &profile;
  }
  if (best == nullptr) refuse(patches, windows);
  return *contexts_[static_cast<size_t>(best - profiles_.data())];
}

void VisionEngine::refuse(int64_t patches, int64_t windows) const {
  const auto in_words = [](const RangeRecord& range, const char* what) {
    return std::to_string(range.shortest) + " to " + std::to_string(range.longest) + " " + what;
  };
  const ImageProfileRecord& largest = *std::max_element(
      profiles_.begin(), profiles_.end(), [](const ImageProfileRecord& one, const ImageProfileRecord& other) {
        return one.patches.longest < other.patches.longest;
      });
  std::string got = std::to_string(patches) + " patches", expected = in_words(largest.patches, "patches");
  if (contract_.indices.size() > 1) {
    got += " in " + std::to_string(windows) + " windows";
    expected += " in " + in_words(largest.windows, "windows");
  }
  throw Error(ErrorCode::kUnsupported, "the image has " + got + ", the vision engine takes " + expected,
              engine_->title(),
              "make the image smaller or less narrow, or build the model again with a larger --max-image-tokens.");
}

}  // namespace trt
}  // namespace awq2trt
