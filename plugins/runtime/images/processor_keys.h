// Keys of a preprocessor_config.json that several processors have. In: the file's contents. Out: checked values, with
// the defaults of transformers' classes; an error, kUnsupported, names the key.
//
// The same checks as awq2trt/images/processor_keys.py.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "images/levels.h"
#include "images/resample.h"

namespace awq2trt {

constexpr int64_t kLargestSide = 8192;  // more than twice that of the largest published tower
constexpr char kPublished[] = "use the file that the model was published with.";

// Pictures on which OpenAI's CLIP was trained have this mean and deviation.
using ChannelNumbers = std::array<double, kChannels>;
constexpr ChannelNumbers kClipMean{0.48145466, 0.4578275, 0.40821073};
constexpr ChannelNumbers kClipStd{0.26862954, 0.26130258, 0.27577711};

// The new size of an image: the length of its shorter side, of which the other one follows, or both sides.
struct Resizing {
  std::optional<int64_t> shortest_edge;
  std::optional<Size> size;
};

class KeyReader {
 public:
  KeyReader(const nlohmann::json& config, const std::string& where) : config_(config), where_(where) {}

  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const;
  void refuse_padding() const;

  const nlohmann::json* find(const char* key) const;  // null if it is not there, or null
  bool flag(const char* key) const;                   // on unless the file says otherwise
  Filter filter(Filter otherwise = Filter::kBicubic) const;
  int64_t count(const char* key, int64_t otherwise, int64_t largest) const;  // a positive whole number
  int64_t longest_edge(const char* key, int64_t otherwise) const;            // of an image
  Size sides(const char* key) const;  // height and width; a single number stands for both
  Resizing resizing() const;
  Levels levels(const ChannelNumbers& mean = kClipMean, const ChannelNumbers& deviation = kClipStd) const;

 private:
  Size sides(const char* key, const nlohmann::json& value) const;
  ChannelNumbers channels(const char* key, const ChannelNumbers& otherwise) const;
  std::optional<double> scale() const;

  const nlohmann::json& config_;
  const std::string& where_;
};

}  // namespace awq2trt
