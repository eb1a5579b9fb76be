// Prepares images for a vision graph exactly as the model's own processor does, bit for bit. In: 8-bit RGB, and the
// preprocessor_config.json of a model's directory. Out: fp32 [3, height, width], or patches, or tiles.
//
// The same steps and checks as awq2trt/images/processor.py, which names its source; a test compares the two.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "images/mosaics.h"
#include "images/patches.h"
#include "images/prepared.h"
#include "images/resample.h"
#include "images/steps.h"
#include "images/tiles.h"

namespace awq2trt {

// Limits of awq2trt/images/read.py.
constexpr int64_t kMostPixels = int64_t{1} << 27;
constexpr int64_t kMostElongated = 200;  // ratio of the sides

using ProcessorKind = std::variant<Steps, Patching, Tiling, Mosaics>;

class ImageProcessor {
 public:
  // Reads preprocessor_config.json or processor_config.json. Throws Error: kNotFound, kMalformed, or kUnsupported if
  // the processor is of an unknown kind, or if a key has another value than expected.
  static ImageProcessor from_directory(const std::string& directory);
  // `config`: the contents of the file; `where`: the file, for errors.
  static ImageProcessor parse(std::string_view config, const std::string& where);

  // Refuses, with kUnsupported, what makes anything else than [1, 3, side, side] whatever the image's size.
  void require_side(int64_t side) const;
  // The same for anything else than patches of these sizes, or tiles of this one: alone, or side by side.
  void require_patches(int64_t patch_size, int64_t frames, int64_t merge) const;
  void require_tiles(int64_t side, bool side_by_side) const;

  // The size that every prepared image has; nothing if it depends on the image's own.
  std::optional<Size> prepared_size() const;
  // What prepares images, if it is of this kind; otherwise null.
  template <typename Kind>
  const Kind* as() const {
    return std::get_if<Kind>(&kind_);
  }

  // The grid of what is made of an image of this size, before anything is.
  Grid grid(const Size& image) const;
  Pixels prepare(const ImageView& image) const;

 private:
  ImageProcessor(ProcessorKind kind, std::string where) : kind_(std::move(kind)), where_(std::move(where)) {}
  void require(const std::string& what, const std::string& wanted, const std::string& found) const;

  ProcessorKind kind_;
  std::string where_;  // its file, for errors
};

// Refuses images that awq2trt/images/read.py refuses. Throws Error, kBadArgument; `where`: the call, for errors.
void check_image(const ImageView& image, const char* where);

}  // namespace awq2trt
