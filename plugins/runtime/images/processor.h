// Prepares images for a vision graph exactly as the model's own processor does, bit for bit. In: 8-bit RGB, and the
// preprocessor_config.json of a model's directory. Out: fp32 [3, height, width], or patches.
//
// The same steps and checks as awq2trt/images/processor.py, which names its source; a test compares the two.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "images/patches.h"
#include "images/prepared.h"
#include "images/resample.h"

namespace awq2trt {

// Limits of awq2trt/images/read.py.
constexpr int64_t kMostPixels = int64_t{1} << 27;
constexpr int64_t kMostElongated = 200;  // ratio of the sides

class ImageProcessor {
 public:
  // Reads preprocessor_config.json or processor_config.json. Throws Error: kNotFound, kMalformed, or kUnsupported if
  // the processor is of another kind than CLIP's and Qwen2-VL's, or if a key has another value than expected.
  static ImageProcessor from_directory(const std::string& directory);
  // `config`: the contents of the file; `where`: the file, for errors.
  static ImageProcessor parse(std::string_view config, const std::string& where);

  // Refuses, with kUnsupported, what makes anything else than [3, side, side] whatever the image's size.
  void require_side(int64_t side) const;
  // The same for anything else than patches of these sizes.
  void require_patches(int64_t patch_size, int64_t frames, int64_t merge) const;

  // The size that every prepared image has; nothing if it depends on the image's own.
  std::optional<Size> prepared_size() const;

  // How it divides images into patches; nothing if it does not.
  const std::optional<Patching>& patching() const { return patching_; }

  // Of the size above, which there must be: [3, height, width].
  std::vector<float> prepare(const ImageView& image) const;
  // Patches, of a processor that makes them.
  PreparedImage divide(const ImageView& image) const;

 private:
  friend class ProcessorReader;

  Size resized(const ImageView& image) const;

  // Steps in this order; what is missing is left out.
  std::optional<int64_t> shortest_edge_;  // new length of the shorter side; the other one keeps the proportion
  std::optional<Size> size_;              // instead of that: the new size, regardless of the proportion
  Filter filter_ = Filter::kBicubic;
  std::optional<Size> crop_;  // the middle that is kept; a smaller image gets a black margin
  // Scaled, without the mean, divided by the standard deviation.
  Levels values_{};
  std::optional<Patching> patching_;  // instead of the other steps
  std::string where_;                 // its file, for errors
};

// Refuses images that awq2trt/images/read.py refuses. Throws Error, kBadArgument; `where`: the call, for errors.
void check_image(const ImageView& image, const char* where);

}  // namespace awq2trt
