// See processor_keys.h.
#include "images/processor_keys.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

using nlohmann::json;

constexpr int64_t kSide = 224;
constexpr double kScale = 1.0 / 255;
constexpr char kLongestEdge[] = "longest_edge";

bool is_number(const json& value) { return value.is_number() && std::fabs(value.get<double>()) <= DBL_MAX; }

bool is_side(const json& value) {
  return value.is_number_integer() && value.get<double>() > 0 && value.get<double>() <= kLargestSide;
}

}  // namespace

void KeyReader::refuse(const std::string& key, const std::string& expected) const {
  const auto found = config_.find(key);
  const std::string got =
      found == config_.end() ? "nothing" : found->dump(-1, ' ', true, json::error_handler_t::replace);
  throw Error(ErrorCode::kUnsupported, key + ": expected " + expected + ", got " + got.substr(0, 80), where_,
              kPublished);
}

void KeyReader::refuse_padding() const {
  const json* const found = find("do_pad");
  if (found != nullptr && *found != false) refuse("do_pad", "false");
}

const json* KeyReader::find(const char* key) const {
  const auto found = config_.find(key);
  return found == config_.end() || found->is_null() ? nullptr : &*found;
}

bool KeyReader::flag(const char* key) const {
  const json* const found = find(key);
  if (found == nullptr) return true;
  if (!found->is_boolean()) refuse(key, "true or false");
  return found->get<bool>();
}

Filter KeyReader::filter(Filter otherwise) const {
  const auto found = config_.find("resample");
  if (found == config_.end()) return otherwise;
  const double number = is_number(*found) ? found->get<double>() : -1;
  if (number < 0 || number > static_cast<double>(Filter::kHamming) || number != std::floor(number)) {
    refuse("resample", "the number of one of Pillow's filters, 0 to 5");
  }
  return static_cast<Filter>(static_cast<int>(number));
}

int64_t KeyReader::count(const char* key, int64_t otherwise, int64_t largest) const {
  const json* const found = find(key);
  if (found == nullptr) return otherwise;
  const double number = found->is_number_integer() ? found->get<double>() : 0;
  if (number < 1 || number > static_cast<double>(largest)) {
    refuse(key, "a whole number from 1 to " + std::to_string(largest));
  }
  return found->get<int64_t>();
}

int64_t KeyReader::longest_edge(const char* key, int64_t otherwise) const {
  const json* const found = find(key);
  if (found == nullptr) return otherwise;
  if (!found->is_object() || found->size() != 1 || !is_side(found->value(kLongestEdge, json()))) {
    refuse(key, "a number from 1 to " + std::to_string(kLargestSide) + " under " + kLongestEdge);
  }
  return found->at(kLongestEdge).get<int64_t>();
}

Size KeyReader::sides(const char* key) const { return sides(key, config_.value(key, json(kSide))); }

Size KeyReader::sides(const char* key, const json& value) const {
  const json height = value.is_object() ? value.value("height", json()) : value;
  const json width = value.is_object() ? value.value("width", json()) : value;
  if (!is_side(height) || !is_side(width)) refuse(key, "height and width from 1 to " + std::to_string(kLargestSide));
  return {width.get<int64_t>(), height.get<int64_t>()};
}

Resizing KeyReader::resizing() const {
  json value = config_.value("size", json(kSide));
  if (value.is_object() && value.size() == 1 && value.contains("shortest_edge")) {
    value = json(value.at("shortest_edge"));
  }
  if (value.is_object()) return {std::nullopt, sides("size", value)};
  if (!is_side(value)) refuse("size", "a side from 1 to " + std::to_string(kLargestSide));
  return {value.get<int64_t>(), std::nullopt};
}

ChannelNumbers KeyReader::channels(const char* key, const ChannelNumbers& otherwise) const {
  const json* const found = find(key);
  if (found == nullptr) return otherwise;
  const json several = found->is_array() ? *found : json::array({*found, *found, *found});
  if (several.size() != kChannels || !std::all_of(several.begin(), several.end(), is_number)) {
    refuse(key, "a number for each of red, green and blue");
  }
  return several.get<ChannelNumbers>();
}

std::optional<double> KeyReader::scale() const {
  if (!flag("do_rescale")) return std::nullopt;
  const json value = config_.value("rescale_factor", json(kScale));
  if (!is_number(value) || value.get<double>() <= 0) refuse("rescale_factor", "a positive number");
  return value.get<double>();
}

// Numbers have the types that NumPy gives them: the scale is fp64, its result fp32, and so are the others.
Levels KeyReader::levels(const ChannelNumbers& otherwise_mean, const ChannelNumbers& otherwise_deviation) const {
  const std::optional<double> factor = scale();
  const bool normalises = flag("do_normalize");
  const auto mean = normalises ? channels("image_mean", otherwise_mean) : otherwise_mean;
  const auto deviation = normalises ? channels("image_std", otherwise_deviation) : otherwise_deviation;
  if (*std::min_element(deviation.begin(), deviation.end()) <= 0) refuse("image_std", "positive numbers");
  Levels levels{};
  for (size_t channel = 0; channel < kChannels; ++channel) {
    for (size_t pixel = 0; pixel < 256; ++pixel) {
      float value = factor ? static_cast<float>(static_cast<double>(pixel) * *factor) : static_cast<float>(pixel);
      if (normalises) {
        value = (value - static_cast<float>(mean[channel])) / static_cast<float>(deviation[channel]);
      }
      levels[channel][pixel] = value;
    }
  }
  return levels;
}

}  // namespace awq2trt
