// What surrounds calls of the graphs beside a decoder of embeddings, whatever runs them. In: tokens, prepared images.
// Out: rows that the decoder reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "backend/contract.h"
#include "images/prepared.h"

namespace awq2trt {

// Rows of tokens, [count, width]: the embeddings that `embed` writes, [count, hidden size], and zeros for what a
// decoder adds behind its first blocks.
void embed_rows(const Contract& decoder, size_t count, float* rows, const std::function<void(float*)>& embed);

// A call of a vision graph: an image, or one of its tiles.
struct VisionCall {
  std::vector<int64_t> pixels, embeddings;  // shapes
  size_t numbers, made;                     // how many each of the two has
};

// Throws Error, kMalformed, where the graph does not take such an image.
VisionCall call_of(const VisionContract& contract, const PreparedImage& image);

// Pieces of an image, [pieces, width], in their order. `look` is called for one tile after the other; it reads the
// pixels of a call and writes what the graph makes of them.
std::vector<float> see_in_calls(const VisionContract& contract, const PreparedImage& image, const VisionCall& call,
                                const std::function<void(const float* pixels, float* embeddings)>& look);

}  // namespace awq2trt
