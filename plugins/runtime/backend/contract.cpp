// See contract.h.
#include "backend/contract.h"

#include <algorithm>
#include <map>

#include "awq2trt/awq2trt.hpp"
#include "images/patches.h"

namespace awq2trt {
namespace {

constexpr char kLayout[] = "bhcd";               // batch, heads, positions, channels
constexpr char kScaledLayout[] = "bhcd+scales";  // codes, and scales without the last axis
constexpr size_t kHeadsAxis = 1, kPositionsAxis = 2, kChannelsAxis = 3;
// Of an axis, and of heads and their channels, so that the bytes of a cache are within 64 bits.
constexpr int64_t kLargestSize = int64_t{1} << 24, kLargestHead = int64_t{1} << 16;

[[noreturn]] void unsupported(const std::string& what, const std::string& where) {
  throw Error(ErrorCode::kUnsupported, what, where,
              "use a later version of this library; `awq2trt run` runs every model that awq2trt builds.");
}

Number number_of(const std::string& dtype, const std::string& where) {
  if (dtype == "float32") return Number::kFloat32;
  if (dtype == "float16") return Number::kFloat16;
  if (dtype == "bfloat16") return Number::kBFloat16;
  if (dtype == "int8") return Number::kInt8;
  unsupported("numbers of type " + dtype, where);
}

bool sized(int64_t size) { return size > 0 && size <= kLargestSize; }

void take_cache_sizes(const TensorRecord& past, const GraphRecord& graph, Contract* contract,
                      const std::string& where) {
  if (past.shape.size() != 4) unsupported("a cache of " + std::to_string(past.shape.size()) + " axes", where);
  const int64_t positions = past.shape[kPositionsAxis];
  contract->heads = past.shape[kHeadsAxis];
  contract->head_dim = past.shape[kChannelsAxis];
  contract->free_capacity = positions == TensorRecord::kFree;
  if (!sized(contract->heads) || !sized(contract->head_dim) || contract->heads > kLargestHead ||
      contract->head_dim > kLargestHead || !sized(graph.capacity) ||
      (!contract->free_capacity && positions != graph.capacity)) {
    unsupported("a cache of these sizes", where + ": " + past.name);
  }
}

// Channels of a part of the rows that a decoder of embeddings reads, which are all of one type.
int64_t channels_of(const TensorRecord& part, Number rows, const std::string& where) {
  if (part.shape.size() != 3 || !sized(part.shape[2]) || rows == Number::kInt8 ||
      number_of(part.dtype, where) != rows) {
    unsupported("embeddings of these sizes or of type " + part.dtype, where + ": " + part.name);
  }
  return part.shape[2];
}

bool is_table(const std::string& name) {
  constexpr const char* kTables[] = {kRotaryCos, kRotarySin, kAttendedImages, kImageOfSlot, kVisibleEnd};
  return std::find(std::begin(kTables), std::end(kTables), name) != std::end(kTables);
}

void take_table(const TensorRecord& table, Contract* contract, const std::string& where) {
  const bool of_slots = table.name == kImageOfSlot || table.name == kVisibleEnd;  // a whole number for each
  const bool images = table.name == kAttendedImages;
  const Number number = of_slots && table.dtype == "int64" ? Number::kInt64 : number_of(table.dtype, where);
  const std::vector<int64_t>& shape = table.shape;
  const bool fits = shape.size() == (images     ? 3
                                     : of_slots ? 1
                                                : 2) &&
                    std::all_of(shape.begin(), shape.end(), sized) &&
                    (images ? sized(shape[0] * shape[1]) : shape[0] == contract->capacity);
  if (!fits || number == Number::kInt8 || (number == Number::kInt64) != of_slots) {
    unsupported("tables of these sizes or of type " + table.dtype, where + ": " + table.name);
  }
  contract->tables.push_back({table.name, number, shape});
}

// Refuses tables that this library does not fill.
void require_tables(const Contract& contract, const std::string& where) {
  std::string names;
  for (const TableContract& table : contract.tables) names += (names.empty() ? "" : " ") + table.name;
  const std::string rotary = std::string(kRotaryCos) + " " + kRotarySin;
  const std::string attended = std::string(kAttendedImages) + " " + kImageOfSlot;
  if (!names.empty() && names != rotary && names != attended && names != kVisibleEnd) {
    unsupported("a decoder with the tables " + names, where);
  }
  if (names == rotary && (contract.tables[0].shape != contract.tables[1].shape ||
                          contract.tables[0].number != contract.tables[1].number)) {
    unsupported("tables of these sizes or of type", where + ": " + kRotarySin);
  }
}

// The scales of a cache of these sizes.
TensorRecord scales_like(const TensorRecord& cache, const std::string& dtype) {
  TensorRecord scales = cache;
  scales.shape.pop_back();
  scales.dtype = dtype;
  return scales;
}

// Whether two caches have the same sizes and numbers.
bool alike(const TensorRecord& one, const TensorRecord& other) {
  return one.shape == other.shape && one.dtype == other.dtype;
}

// The type of the scores, which the scales have too.
std::string logits_dtype(const GraphRecord& graph) {
  for (const TensorRecord& output : graph.outputs) {
    if (output.name == kLogits) return output.dtype;
  }
  return graph.cache_dtype;
}

// What a graph for images of any size reads beside their patches.
std::vector<IndexContract> indices_of(const PatchRecord& patches) {
  const int64_t side = patches.window_side() * patches.merge;
  if (side == 0) return {{kPatchPlaces, 2}};
  return {{kPatchPlaces, 2}, {kWindowPatches, side * side}, {kPatchSlots, 1}};
}

// Whether a graph for images of any size, and the decoder, take what this library makes.
bool patches_fit(const VisionRecord& vision, int64_t numbers, const Contract& decoder) {
  const PatchRecord& patches = *vision.patches;
  const std::vector<IndexContract> indices = indices_of(patches);
  const auto is = [](const TensorRecord& tensor, const IndexContract& index) {
    const std::vector<int64_t> shape = index.columns == 1 ? std::vector<int64_t>{TensorRecord::kFree}
                                                          : std::vector<int64_t>{TensorRecord::kFree, index.columns};
    return tensor.name == index.name && tensor.dtype == "int64" && tensor.shape == shape;
  };
  const int64_t pairs = vision.rope ? static_cast<int64_t>(vision.rope->inv_freq.size()) : 0;
  const TableContract* const rotary = decoder.table(kRotaryCos);
  return numbers == kChannels * patches.frames * patches.patch_size * patches.patch_size &&
         std::equal(indices.begin(), indices.end(), vision.vision.inputs.begin() + 1,
                    [&](const IndexContract& index, const TensorRecord& tensor) { return is(tensor, index); }) &&
         pairs == (rotary == nullptr ? 0 : rotary->shape[1]) && (rotary != nullptr || decoder.tables.empty());
}

// Whether a decoder, and the graph for images of one size that sees its `pieces` of `width`, take what this library
// makes of images of this kind.
bool still_fits(const VisionRecord& vision, const VisionContract& seen, const Contract& decoder) {
  const TableContract* const images = decoder.table(kAttendedImages);
  if (vision.kind == ImageKind::kAttended) {
    return images != nullptr && images->shape[1] == seen.pieces && images->shape[2] == seen.width &&
           vision.tokens_per_image == 1;
  }
  const bool tables =
      vision.kind == ImageKind::kBlocks ? decoder.table(kVisibleEnd) != nullptr : decoder.tables.empty();
  if (!tables || seen.width != decoder.width()) return false;
  return vision.tiles ? seen.pieces == vision.tiles->rows() && seen.side == vision.tiles->image_size
                      : seen.pieces == vision.tokens_per_image;
}

}  // namespace

size_t TableContract::count() const {
  size_t numbers = 1;
  for (const int64_t size : shape) numbers *= static_cast<size_t>(size);
  return numbers;
}

const TableContract* Contract::table(std::string_view name) const {
  const auto found =
      std::find_if(tables.begin(), tables.end(), [&](const TableContract& table) { return table.name == name; });
  return found == tables.end() ? nullptr : &*found;
}

size_t Contract::cache_bytes(const CachePair& pair, int64_t positions) const {
  size_t bytes = bytes_of(pair.number);
  for (const int64_t size : cache_shape(pair, positions)) bytes *= static_cast<size_t>(size);
  return bytes;
}

std::vector<int64_t> Contract::cache_shape(const CachePair& pair, int64_t positions) const {
  std::vector<int64_t> shape = {1, heads, positions};
  if (pair.channels != 0) shape.push_back(pair.channels);
  return shape;
}

std::vector<RowPart> Contract::row_parts() const {
  std::vector<RowPart> parts = {{kInputsEmbeds, 0, hidden_size}};
  if (deepstack != 0) parts.push_back({kDeepstackEmbeds, hidden_size, deepstack});
  return parts;
}

void Contract::narrow_part(const float* from, size_t count, const RowPart& part, void* to) const {
  if (part.channels == width()) {
    narrow(from, rows, count * static_cast<size_t>(width()), to);
    return;
  }
  for (size_t row = 0; row < count; ++row, from += width()) {
    narrow(from + part.first, rows, static_cast<size_t>(part.channels), static_cast<char*>(to) + part_bytes(row, part));
  }
}

Contract read_contract(const GraphRecord& graph, const std::string& where) {
  const bool scaled = graph.cache_layout == kScaledLayout;
  if (!scaled && graph.cache_layout != kLayout) unsupported("a cache of layout " + graph.cache_layout, where);
  Contract contract{};
  contract.capacity = graph.capacity;
  const std::string dtype = logits_dtype(graph);
  contract.number = number_of(dtype, where);
  const Number cache_number = number_of(graph.cache_dtype, where);
  if (contract.number == Number::kInt8 || (cache_number == Number::kInt8) != scaled) {
    unsupported("scores of type " + dtype + " and a cache of type " + graph.cache_dtype, where);
  }
  const TensorRecord* first = nullptr;
  std::map<std::string, const TensorRecord*> pasts;
  bool ids = false, position = false, logits = false;
  for (const TensorRecord& input : graph.inputs) {
    if (input.name == kInputsEmbeds || input.name == kDeepstackEmbeds) {
      const bool embeds = input.name == kInputsEmbeds;
      if (!embeds && contract.hidden_size == 0)
        unsupported("a decoder with " + input.name + " before embeddings", where);
      if (embeds) contract.rows = number_of(input.dtype, where);
      ids = ids || embeds;
      (embeds ? contract.hidden_size : contract.deepstack) = channels_of(input, contract.rows, where);
    } else if (is_table(input.name)) {
      take_table(input, &contract, where);
    } else if (input.name == kInputIds || input.name == kCachePosition) {
      (input.name == kInputIds ? ids : position) = true;
      if (input.dtype != "int64") unsupported(input.name + " of type " + input.dtype, where);
    } else if (input.name.rfind("past_", 0) == 0) {
      pasts[input.name] = &input;
      if (first == nullptr && input.dtype == graph.cache_dtype) {
        take_cache_sizes(*(first = &input), graph, &contract, where);
      }
      if (first == nullptr || (!alike(input, *first) && !(scaled && alike(input, scales_like(*first, dtype))))) {
        unsupported("caches of several sizes", where + ": " + input.name);
      }
    } else {
      unsupported("a decoder with the input " + input.name, where);
    }
  }
  for (const TensorRecord& output : graph.outputs) {
    if (!output.alias.empty()) {
      const auto past = pasts.find(output.alias);
      if (past == pasts.end()) unsupported("a decoder without the cache " + output.alias, where);
      const bool is_scale = past->second->dtype != graph.cache_dtype;
      contract.caches.push_back(
          {output.alias, output.name, is_scale ? contract.number : cache_number, is_scale ? 0 : contract.head_dim});
    } else if (output.name == kLogits) {
      logits = output.shape.size() == 3 && output.shape[2] > 0 && output.shape[2] <= kLargestSize;
      if (!logits) unsupported("logits of these sizes", where);
      contract.vocab_size = output.shape[2];
      contract.all_rows = output.shape[1] != 1;
    } else if (output.name == kNextToken && output.dtype == "int64") {
      contract.next_token = true;
    } else {
      unsupported("a decoder with the output " + output.name, where);
    }
  }
  if (!ids || !position || !logits || pasts.empty() || pasts.size() != contract.caches.size()) {
    unsupported("a decoder without tokens, their position, scores, or caches in pairs", where);
  }
  require_tables(contract, where);
  return contract;
}

bool VisionContract::takes(const PreparedImage& image) const {
  size_t count = 1;
  for (const int64_t size : image.shape) count *= static_cast<size_t>(size);
  if (image.pixels.size() != count) return false;
  if (numbers != 0) return image.shape.size() == 2 && image.shape[1] == numbers;
  if (image.shape.size() != 4 || image.shape != std::vector<int64_t>{image.shape[0], kChannels, side, side})
    return false;
  const int64_t rows = image.shape[0] * pieces;
  if (image.order.empty()) return image.pieces == rows;
  return image.pieces == static_cast<int64_t>(image.order.size()) &&
         std::all_of(image.order.begin(), image.order.end(), [&](int64_t row) { return row >= 0 && row < rows; });
}

VisionContract read_vision_contract(const VisionRecord& vision, const Contract& decoder, const std::string& where) {
  const auto tensor = [&](const std::vector<TensorRecord>& all, const char* name, size_t rank,
                          size_t count = 1) -> const TensorRecord& {
    if (all.size() != count || all[0].name != name || all[0].shape.size() != rank) {
      unsupported(std::string("a graph beside the decoder without exactly the tensor ") + name, where);
    }
    return all[0];
  };
  const bool any_size = vision.patches.has_value();
  VisionContract contract{};
  if (any_size) contract.indices = indices_of(*vision.patches);
  const TensorRecord& pixels =
      tensor(vision.vision.inputs, kPixelValues, any_size ? 2 : 4, 1 + contract.indices.size());
  const TensorRecord& seen = tensor(vision.vision.outputs, kImageEmbeddings, any_size ? 2 : 3);
  const TensorRecord& ids = tensor(vision.embedding.inputs, kInputIds, 2);
  const TensorRecord& rows = tensor(vision.embedding.outputs, kInputsEmbeds, 3);
  contract.pixels = number_of(pixels.dtype, where);
  contract.embeddings = number_of(seen.dtype, where);
  contract.width = seen.shape.back();
  contract.rows = number_of(rows.dtype, where);
  // Lowered for ONNX Runtime, the embedding makes what this library computes with; its engine, what the decoder reads.
  const bool rows_fit = vision.embedding.engine ? contract.rows == decoder.rows : contract.rows == Number::kFloat32;
  if (contract.pixels == Number::kInt8 || contract.embeddings == Number::kInt8 || ids.dtype != "int64" || !rows_fit) {
    unsupported("a vision or embedding graph with these types", where);
  }
  bool fits = sized(contract.width) && rows.shape[2] == decoder.hidden_size;
  if (any_size) {
    contract.numbers = pixels.shape[1];
    fits = fits && contract.width == decoder.width() && patches_fit(vision, contract.numbers, decoder);
  } else {
    contract.side = pixels.shape[3];
    contract.pieces = seen.shape[1];
    fits = fits && pixels.shape[1] == kChannels && pixels.shape[2] == contract.side && sized(contract.side) &&
           sized(contract.pieces) && still_fits(vision, contract, decoder);
  }
  if (!fits) unsupported("a vision or embedding graph of these sizes", where);
  return contract;
}

}  // namespace awq2trt
