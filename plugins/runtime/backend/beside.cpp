// See beside.h.
#include "backend/beside.h"

#include <algorithm>
#include <string>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

void embed_rows(const Contract& decoder, size_t count, float* rows, const std::function<void(float*)>& embed) {
  if (decoder.deepstack == 0) {
    embed(rows);
    return;
  }
  std::vector<float> embeddings(count * static_cast<size_t>(decoder.hidden_size));
  embed(embeddings.data());
  for (const float* from = embeddings.data(); count > 0; --count, from += decoder.hidden_size) {
    rows = std::copy(from, from + decoder.hidden_size, rows);
    rows = std::fill_n(rows, decoder.deepstack, 0.0f);
  }
}

VisionCall call_of(const VisionContract& contract, const PreparedImage& image) {
  if (!contract.takes(image)) {
    const std::string expected = contract.numbers == 0 ? std::to_string(kChannels * contract.side * contract.side)
                                                       : "patches of " + std::to_string(contract.numbers);
    throw Error(ErrorCode::kMalformed,
                "got " + std::to_string(image.pixels.size()) + " numbers of an image, expected " + expected,
                kPixelValues, "");
  }
  const int64_t rows = contract.rows_of_call(image);
  VisionCall call{image.shape, {rows, contract.width}, 0, static_cast<size_t>(rows * contract.width)};
  call.numbers = image.pixels.size() / static_cast<size_t>(contract.calls(image));
  if (contract.numbers == 0) {
    call.pixels[0] = 1;
    call.embeddings.insert(call.embeddings.begin(), 1);
  }
  return call;
}

std::vector<float> see_in_calls(const VisionContract& contract, const PreparedImage& image, const VisionCall& call,
                                const std::function<void(const float* pixels, float* embeddings)>& look) {
  const auto calls = static_cast<size_t>(contract.calls(image));
  std::vector<float> seen(calls * call.made);
  for (size_t i = 0; i < calls; ++i) look(image.pixels.data() + i * call.numbers, seen.data() + i * call.made);
  if (image.order.empty()) return seen;
  std::vector<float> pieces;
  pieces.reserve(image.order.size() * static_cast<size_t>(contract.width));
  for (const int64_t row : image.order) {
    const auto from = seen.begin() + row * contract.width;
    pieces.insert(pieces.end(), from, from + contract.width);
  }
  return pieces;
}

}  // namespace awq2trt
