// See processor.h.
#include "images/processor.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kFiles[] = {"preprocessor_config.json", "processor_config.json"};
constexpr const char* kKinds[] = {"CLIPImageProcessor", "CLIPFeatureExtractor"};
constexpr char kPatches[] = "Qwen2VLImageProcessor";
constexpr const char* kSuffixes[] = {"Fast", "Pil"};  // of a kind: other programs for the same
constexpr char kPublished[] = "use the file that the model was published with.";
constexpr char kExportAgain[] = "export the model again with the file that it was published with.";
constexpr uint64_t kLargestFile = 1 << 20;  // published ones have less than 2,000 bytes
constexpr int kDeepest = 32;
constexpr int64_t kLargestSide = 8192;  // more than twice that of the largest published tower

// The defaults of transformers' CLIPImageProcessor; OpenAI's CLIP was trained on pictures of this mean and deviation.
constexpr int64_t kSide = 224;
constexpr double kScale = 1.0 / 255;
constexpr std::array<double, kChannels> kMean{0.48145466, 0.4578275, 0.40821073};
constexpr std::array<double, kChannels> kStd{0.26862954, 0.26130258, 0.27577711};

// Those of its Qwen2VLImageProcessor, and the names that `size` has for pixels.
constexpr char kFewest[] = "shortest_edge", kMost[] = "longest_edge";
constexpr int64_t kFewestPixels = int64_t{56} * 56, kMostPixelsOfImage = int64_t{28} * 28 * 1280;

bool is_number(const json& value) { return value.is_number() && std::fabs(value.get<double>()) <= DBL_MAX; }

bool is_side(const json& value) {
  return value.is_number_integer() && value.get<double>() > 0 && value.get<double>() <= kLargestSide;
}

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

}  // namespace

// Reads keys of a processor's file, and checks each of them.
class ProcessorReader {
 public:
  ProcessorReader(const json& config, const std::string& where) : config_(config), where_(where) {}

  ImageProcessor read() const {
    const std::string kind = without_suffixes(kind_of(config_));
    if (kind != kPatches && std::find(std::begin(kKinds), std::end(kKinds), kind) == std::end(kKinds)) {
      refuse("image_processor_type", std::string(kKinds[0]) + " or " + kPatches);
    }
    if (pads()) refuse("do_pad", "false");
    ImageProcessor processor;
    processor.where_ = where_;
    if (kind == kPatches) {
      read_patching(&processor);
      return processor;
    }
    if (flag("do_resize")) read_size(&processor);
    processor.filter_ = filter();
    if (flag("do_center_crop")) {
      const auto found = config_.find("crop_size");
      processor.crop_ = sides("crop_size", found == config_.end() ? json(kSide) : *found);
    }
    fill_values(&processor);
    return processor;
  }

 private:
  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    const auto found = config_.find(key);
    const std::string got =
        found == config_.end() ? "nothing" : found->dump(-1, ' ', true, json::error_handler_t::replace);
    throw Error(ErrorCode::kUnsupported, key + ": expected " + expected + ", got " + got.substr(0, 80), where_,
                kPublished);
  }

  bool pads() const {
    const auto found = config_.find("do_pad");
    return found != config_.end() && !found->is_null() && *found != false;
  }

  bool flag(const char* key) const {
    const auto found = config_.find(key);
    if (found == config_.end() || found->is_null()) return true;
    if (!found->is_boolean()) refuse(key, "true or false");
    return found->get<bool>();
  }

  Filter filter() const {
    const auto found = config_.find("resample");
    if (found == config_.end()) return Filter::kBicubic;
    const double number = is_number(*found) ? found->get<double>() : -1;
    if (number < 0 || number > static_cast<double>(Filter::kHamming) || number != std::floor(number)) {
      refuse("resample", "the number of one of Pillow's filters, 0 to 5");
    }
    return static_cast<Filter>(static_cast<int>(number));
  }

  // Either the length of the shorter side, or height and width.
  void read_size(ImageProcessor* processor) const {
    const auto found = config_.find("size");
    json value = found == config_.end() ? json(kSide) : *found;
    if (value.is_object() && value.size() == 1 && value.contains("shortest_edge")) {
      value = json(value.at("shortest_edge"));
    }
    if (value.is_object()) {
      processor->size_ = sides("size", value);
    } else if (is_side(value)) {
      processor->shortest_edge_ = value.get<int64_t>();
    } else {
      refuse("size", "a side from 1 to " + std::to_string(kLargestSide));
    }
  }

  void read_patching(ImageProcessor* processor) const {
    if (!flag("do_resize")) refuse("do_resize", "true, since patches have to fill an image");
    const auto found = config_.find("size");
    const json size = found == config_.end() || found->is_null()
                          ? json{{kFewest, kFewestPixels}, {kMost, kMostPixelsOfImage}}
                          : *found;
    const auto whole = [&](const char* key) { return size.contains(key) && size.at(key).is_number_integer(); };
    if (!size.is_object() || !whole(kFewest) || !whole(kMost)) {
      refuse("size", std::string("numbers under ") + kFewest + " and " + kMost);
    }
    constexpr int64_t most_pixels = kLargestSide * kLargestSide;
    // Within bounds, so that a number of any size can be compared.
    const auto bounded = [&](const char* key) {
      return static_cast<int64_t>(std::clamp(size.at(key).get<double>(), 0.0, static_cast<double>(most_pixels + 1)));
    };
    const int64_t fewest = count("min_pixels", bounded(kFewest), most_pixels);
    const int64_t most = count("max_pixels", bounded(kMost), most_pixels);
    if (fewest < 1 || fewest > most || most > most_pixels) {
      refuse("max_pixels",
             "min_pixels (" + std::to_string(fewest) + ") to " + std::to_string(most_pixels) + ", and both positive");
    }
    processor->filter_ = filter();
    fill_values(processor);
    processor->patching_ =
        Patching{fewest, most, count("patch_size", 14, kLargestSide), count("temporal_patch_size", 2, kLargestSide),
                 count("merge_size", 2, kLargestSide)};
  }

  // A positive whole number.
  int64_t count(const char* key, int64_t otherwise, int64_t largest) const {
    const auto found = config_.find(key);
    if (found == config_.end() || found->is_null()) return otherwise;
    const double number = found->is_number_integer() ? found->get<double>() : 0;
    if (number < 1 || number > static_cast<double>(largest)) {
      refuse(key, "a whole number from 1 to " + std::to_string(largest));
    }
    return found->get<int64_t>();
  }

  // Height and width; a single number stands for both.
  Size sides(const char* key, const json& value) const {
    const json height = value.is_object() ? value.value("height", json()) : value;
    const json width = value.is_object() ? value.value("width", json()) : value;
    if (!is_side(height) || !is_side(width)) refuse(key, "height and width from 1 to " + std::to_string(kLargestSide));
    return {width.get<int64_t>(), height.get<int64_t>()};
  }

  std::array<double, kChannels> channels(const char* key, const std::array<double, kChannels>& otherwise) const {
    const auto found = config_.find(key);
    if (found == config_.end() || found->is_null()) return otherwise;
    const json several = found->is_array() ? *found : json::array({*found, *found, *found});
    if (several.size() != kChannels || !std::all_of(several.begin(), several.end(), is_number)) {
      refuse(key, "a number for each of red, green and blue");
    }
    return several.get<std::array<double, kChannels>>();
  }

  // The steps' numbers have the types that NumPy gives them: the scale is fp64, its result fp32, and so are the others.
  void fill_values(ImageProcessor* processor) const {
    std::optional<double> scale;
    if (flag("do_rescale")) {
      const auto found = config_.find("rescale_factor");
      const json value = found == config_.end() ? json(kScale) : *found;
      if (!is_number(value) || value.get<double>() <= 0) refuse("rescale_factor", "a positive number");
      scale = value.get<double>();
    }
    const bool normalises = flag("do_normalize");
    const auto mean = normalises ? channels("image_mean", kMean) : kMean;
    const auto deviation = normalises ? channels("image_std", kStd) : kStd;
    if (*std::min_element(deviation.begin(), deviation.end()) <= 0) refuse("image_std", "positive numbers");
    for (size_t channel = 0; channel < kChannels; ++channel) {
      for (size_t pixel = 0; pixel < 256; ++pixel) {
        float value = scale ? static_cast<float>(static_cast<double>(pixel) * *scale) : static_cast<float>(pixel);
        if (normalises) {
          value = (value - static_cast<float>(mean[channel])) / static_cast<float>(deviation[channel]);
        }
        processor->values_[channel][pixel] = value;
      }
    }
  }

  const json& config_;
  const std::string& where_;
};

ImageProcessor ImageProcessor::parse(std::string_view config, const std::string& where) {
  return ProcessorReader(parse_config(config, where), where).read();
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
  if (patching_) return std::nullopt;
  return crop_ ? crop_ : size_;
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
  const std::string wanted = sizes(patch_size, frames, merge);
  const std::string found =
      patching_ ? sizes(patching_->patch_size, patching_->frames, patching_->merge) : "no patches";
  if (found == wanted) return;
  throw Error(ErrorCode::kUnsupported,
              "expected an image processor with the tower's patch_size, temporal_patch_size and merge_size, " + wanted +
                  ", got " + found,
              where_, kExportAgain);
}

PreparedImage ImageProcessor::divide(const ImageView& image) const {
  const Size size = patching_->resized(image);
  const std::vector<uint8_t> pixels = resample(image, size, filter_, {0, 0, size.width, size.height});
  return cut_patches({pixels.data(), size.width, size.height}, *patching_, values_);
}

Size ImageProcessor::resized(const ImageView& image) const {
  if (size_) return *size_;
  if (!shortest_edge_) return {image.width, image.height};
  const int64_t shorter = std::min(image.width, image.height), longer = std::max(image.width, image.height);
  const auto other = static_cast<int64_t>(static_cast<double>(*shortest_edge_ * longer) / static_cast<double>(shorter));
  return image.width <= image.height ? Size{*shortest_edge_, other} : Size{other, *shortest_edge_};
}

std::vector<float> ImageProcessor::prepare(const ImageView& image) const {
  const Size whole = resized(image), made = *prepared_size();
  // A side that is too short gets black margins, of which the one before the image is the larger.
  const auto first = [](int64_t length, int64_t wanted) { return std::max<int64_t>(length - wanted, 0) / 2; };
  const auto margin = [](int64_t length, int64_t wanted) { return (std::max<int64_t>(wanted - length, 0) + 1) / 2; };
  const Window window{first(whole.width, made.width), first(whole.height, made.height),
                      std::min(whole.width, made.width), std::min(whole.height, made.height)};
  const int64_t left = margin(whole.width, made.width), top = margin(whole.height, made.height);
  const std::vector<uint8_t> pixels = resample(image, whole, filter_, window);
  std::vector<float> prepared;
  prepared.reserve(static_cast<size_t>(kChannels * made.width * made.height));
  for (int64_t channel = 0; channel < kChannels; ++channel) {
    const auto& values = values_[static_cast<size_t>(channel)];
    prepared.resize(prepared.size() + static_cast<size_t>(made.width * made.height), values[0]);
    float* const plane = prepared.data() + channel * made.width * made.height;
    for (int64_t y = 0; y < window.height; ++y) {
      const uint8_t* from = pixels.data() + y * window.width * kChannels + channel;
      float* const to = plane + (top + y) * made.width + left;
      for (int64_t x = 0; x < window.width; ++x) to[x] = values[from[x * kChannels]];
    }
  }
  return prepared;
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
