// Inputs and outputs of a decoder, and of the graphs beside it, as this library runs them. In: the graphs' records in
// the manifest. Out: sizes and names, or an Error with kUnsupported: a graph with other inputs would give other answers
// than this library expects.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "artifact/manifest.h"
#include "backend/numbers.h"
#include "images/prepared.h"
#include "images/resample.h"

namespace awq2trt {

constexpr char kInputIds[] = "input_ids";
constexpr char kInputsEmbeds[] = "inputs_embeds";
constexpr char kDeepstackEmbeds[] = "deepstack_embeds";
constexpr char kPixelValues[] = "pixel_values";
constexpr char kImageEmbeddings[] = "image_embeddings";
constexpr char kRotaryCos[] = "rotary_cos";
constexpr char kRotarySin[] = "rotary_sin";
constexpr char kAttendedImages[] = "attended_images";
constexpr char kImageOfSlot[] = "image_of_slot";
constexpr char kVisibleEnd[] = "visible_end";
constexpr char kCachePosition[] = "cache_position";
constexpr char kLogits[] = "logits";
constexpr char kNextToken[] = "next_token";

// Keys or values of a layer, or the scales of either: one buffer for the input and the output.
struct CachePair {
  std::string past, present;
  Number number;
  int64_t channels;  // of a head; 0 for scales, which are one number per head and have no axis of channels
};

// A part of the rows that a decoder reads instead of tokens: an input of its own.
struct RowPart {
  const char* name;
  int64_t first, channels;
};

// A table that a decoder reads, filled by whoever runs it.
struct TableContract {
  std::string name;
  Number number;
  std::vector<int64_t> shape;

  size_t count() const;  // of its numbers
  size_t bytes() const { return count() * bytes_of(number); }
};

struct Contract {
  std::vector<CachePair> caches;
  Number number;  // of logits
  int64_t heads, head_dim;
  int64_t capacity;
  bool free_capacity;  // a cache may have fewer positions than `capacity`
  int64_t vocab_size;
  int64_t hidden_size;  // of the embeddings that it reads; 0 if it reads tokens
  int64_t deepstack;    // channels of what is added behind its first blocks; 0 without deepstack
  Number rows;          // type of both
  // Cosines and sines; or images that it attends to, and which one in which slot; or how far tokens see; or nothing.
  std::vector<TableContract> tables;
  bool all_rows;    // logits of every new token, not only of the last
  bool next_token;  // the graph finds the token with the largest score

  // Numbers of a row: an embedding, and what is added behind the first blocks.
  int64_t width() const { return hidden_size + deepstack; }
  std::vector<RowPart> row_parts() const;
  // Writes one part of so many rows, in their type.
  void narrow_part(const float* rows, size_t count, const RowPart& part, void* to) const;
  size_t part_bytes(size_t count, const RowPart& part) const {
    return count * static_cast<size_t>(part.channels) * bytes_of(rows);
  }

  // The table of this name; null if it reads none.
  const TableContract* table(std::string_view name) const;

  // Size of one conversation's cache of `positions`.
  size_t cache_bytes(const CachePair& pair, int64_t positions) const;
  std::vector<int64_t> cache_shape(const CachePair& pair, int64_t positions) const;
};

Contract read_contract(const GraphRecord& graph, const std::string& where);

// Whole numbers that a vision graph reads beside pixels: [rows, columns], or [rows] of one column.
struct IndexContract {
  std::string name;
  int64_t columns;
};

// A vision graph: [1, 3, side, side] of an image or a tile -> [1, pieces, width]; or [patches, numbers], with indices
// of patches beside them -> [pieces, width].
struct VisionContract {
  Number pixels, embeddings;  // types of its input and its output
  Number rows;                // type of what the embedding graph makes
  int64_t side, pieces;       // 0 for patches
  int64_t numbers;            // of a patch; 0 for images and tiles
  int64_t width;              // of a row that the decoder reads, or of a piece that it attends to
  std::vector<IndexContract> indices;

  // Whether the graph takes an image.
  bool takes(const PreparedImage& image) const;
  // Calls that see an image: one for each tile.
  int64_t calls(const PreparedImage& image) const { return numbers == 0 ? image.shape[0] : 1; }
  int64_t rows_of_call(const PreparedImage& image) const { return numbers == 0 ? pieces : image.pieces; }
};

// Checks that the graphs beside a decoder of embeddings fit to it, too.
VisionContract read_vision_contract(const VisionRecord& vision, const Contract& decoder, const std::string& where);

}  // namespace awq2trt
