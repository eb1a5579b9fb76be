// See processor.h.
#include "images/processor.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"
#include "images/processor_keys.h"

namespace awq2trt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kFiles[] = {"preprocessor_config.json", "processor_config.json"};
constexpr char kStill[] = "CLIPImageProcessor";
constexpr char kPatches[] = "Qwen2VLImageProcessor";
constexpr char kMosaics[] = "LlavaNextImageProcessor";
constexpr char kTiles[] = "Idefics3ImageProcessor";
constexpr char kGemma[] = "Gemma3ImageProcessor";
constexpr const char* kSuffixes[] = {"Fast", "Pil"};  // of a kind: other programs for the same
constexpr char kExportAgain[] = "export the model again with the file that it was published with.";
constexpr uint64_t kLargestFile = 1 << 20;  // published ones have less than 2,000 bytes
constexpr int kDeepest = 32;

// The kind of a processor; empty if the object describes none.
std::string kind_of(const json& config) {
  for (const char* key : {"image_processor_type", "feature_extractor_type"}) {
    const auto found = config.find(key);
    if (found != config.end() && found->is_string() && !found->get_ref<const std::string&>().empty()) return *found;
  }
  return "";
}

std::string without_suffixes(std::string kind) {
  for (const char* suffix : kSuffixes) {
    const std::string_view end(suffix);
    if (kind.size() > end.size() && kind.compare(kind.size() - end.size(), end.size(), end) == 0) {
      kind.resize(kind.size() - end.size());
    }
  }
  return kind;
}

json parse_config(std::string_view text, const std::string& where) {
  const auto shallow = [&](int depth, json::parse_event_t, json&) {
    if (depth > kDeepest) throw Error(ErrorCode::kMalformed, "nested too deeply", where, kPublished);
    return true;
  };
  try {
    json config = json::parse(text, shallow);
    if (!config.is_object()) throw Error(ErrorCode::kMalformed, "an object is expected", where, kPublished);
    const auto part = config.find("image_processor");  // of a complete processor
    if (part == config.end()) return config;
    if (!part->is_object()) throw Error(ErrorCode::kMalformed, "an object is expected", where, kPublished);
    return *part;
  } catch (const json::exception& error) {
    throw Error(ErrorCode::kMalformed, std::string("not JSON: ") + error.what(), where, kPublished);
  }
}

ProcessorKind read_kind(const KeyReader& reader, const std::string& kind) {
  const auto is = [&](std::initializer_list<const char*> names) {
    return std::find(names.begin(), names.end(), kind) != names.end();
  };
  if (is({kStill, "CLIPFeatureExtractor"})) {
    reader.refuse_padding();
    return read_steps(reader);
  }
  if (is({kPatches})) {
    reader.refuse_padding();
    return read_patching(reader);
  }
  if (is({kMosaics})) return read_mosaics(reader);
  if (is({kTiles, "SmolVLMImageProcessor"})) return read_tiling(reader);
  if (is({kGemma})) return read_gemma_steps(reader);
  reader.refuse("image_processor_type",
                std::string(kStill) + ", " + kPatches + ", " + kMosaics + ", " + kTiles + " or " + kGemma);
}

}  // namespace

ImageProcessor ImageProcessor::parse(std::string_view config, const std::string& where) {
  const json keys = parse_config(config, where);
  return {read_kind(KeyReader(keys, where), without_suffixes(kind_of(keys))), where};
}

ImageProcessor ImageProcessor::from_directory(const std::string& directory) {
  for (const char* name : kFiles) {
    const fs::path path = fs::path(directory) / name;
    std::error_code problem;
    if (!fs::is_regular_file(path, problem)) continue;
    const uint64_t bytes = fs::file_size(path, problem);
    if (problem || bytes > kLargestFile) {
      throw Error(ErrorCode::kMalformed, "larger than any image processor's", path.string(), kPublished);
    }
    std::ifstream in(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (kind_of(parse_config(text, path.string())).empty()) continue;  // of something else than images
    return parse(text, path.string());
  }
  throw Error(ErrorCode::kNotFound,
              std::string("expected an image processor in ") + kFiles[0] + " or " + kFiles[1] + ", got none", directory,
              "copy the directory again, or export the model again.");
}

std::optional<Size> ImageProcessor::prepared_size() const {
  const Steps* const steps = as<Steps>();
  return steps == nullptr ? std::nullopt : steps->always_made();
}

Grid ImageProcessor::grid(const Size& image) const {
  return std::visit([&](const auto& kind) { return kind.grid(image); }, kind_);
}

Pixels ImageProcessor::prepare(const ImageView& image) const {
  return std::visit([&](const auto& kind) { return kind.prepare(image); }, kind_);
}

void ImageProcessor::require_side(int64_t side) const {
  const std::optional<Size> made = prepared_size();
  if (made && made->width == side && made->height == side) return;
  throw Error(ErrorCode::kUnsupported,
              "the image processor makes " +
                  (made ? std::to_string(made->height) + " x " + std::to_string(made->width) + " pixels"
                        : std::string("images of any size")) +
                  ", and the vision graph takes " + std::to_string(side) + " x " + std::to_string(side),
              where_, kExportAgain);
}

void ImageProcessor::require_patches(int64_t patch_size, int64_t frames, int64_t merge) const {
  const auto sizes = [](int64_t size, int64_t images, int64_t side) {
    return std::to_string(size) + ", " + std::to_string(images) + ", " + std::to_string(side);
  };
  const Patching* const patching = as<Patching>();
  require("patch_size, temporal_patch_size and merge_size", sizes(patch_size, frames, merge),
          patching == nullptr ? "" : sizes(patching->patch_size, patching->frames, patching->merge));
}

void ImageProcessor::require_tiles(int64_t side, bool side_by_side) const {
  const Tiling* const tiling = as<Tiling>();
  const Mosaics* const mosaics = as<Mosaics>();
  const std::string wanted = std::to_string(side);
  if (side_by_side) {
    require("image_size as its crop_size", wanted, mosaics == nullptr ? "" : std::to_string(mosaics->side));
  } else {
    require("image_size as its max_image_size", wanted, tiling == nullptr ? "" : std::to_string(tiling->side));
  }
}

void ImageProcessor::require(const std::string& what, const std::string& wanted, const std::string& found) const {
  if (found == wanted) return;
  throw Error(ErrorCode::kUnsupported,
              "expected an image processor with the tower's " + what + ", " + wanted + ", got " +
                  (found.empty() ? "one of another kind" : found),
              where_, kExportAgain);
}

void check_image(const ImageView& image, const char* where) {
  const auto refuse = [&](const std::string& expected, const std::string& fix) {
    const std::string got = std::to_string(image.width) + " x " + std::to_string(image.height);
    throw Error(ErrorCode::kBadArgument, "expected an image of " + expected + ", got " + got, where, fix);
  };
  if (image.rgb == nullptr) throw Error(ErrorCode::kBadArgument, "there are no pixels", where, "");
  if (image.width < 1 || image.height < 1) refuse("1 x 1 pixels or more", "");
  if (image.width * image.height > kMostPixels) {
    refuse("at most " + std::to_string(kMostPixels) + " pixels", "make it smaller first.");
  }
  const int64_t longer = std::max(image.width, image.height), shorter = std::min(image.width, image.height);
  if (longer > kMostElongated * shorter) {
    refuse("sides at most " + std::to_string(kMostElongated) + " times as long as each other",
           "crop it to the part that matters.");
  }
}

}  // namespace awq2trt
