// The steps that make an image of one size of any other: resize, cut out the middle. As `ImageProcessor` of
// awq2trt/images/processor.py, which names its source.
#pragma once

#include <cstdint>
#include <optional>

#include "images/levels.h"
#include "images/prepared.h"
#include "images/processor_keys.h"
#include "images/resample.h"

namespace awq2trt {

// In this order; what is missing is left out.
struct Steps {
  Resizing resizing;
  Filter filter;
  std::optional<Size> crop;  // the middle that is kept; a smaller image gets a black margin
  Levels levels;

  Size resized(const Size& image) const;
  // Of what is made of an image.
  Size made(const Size& image) const { return crop ? *crop : resized(image); }
  // The same of every image; nothing if it depends on the image's own size.
  std::optional<Size> always_made() const { return crop ? crop : resizing.size; }
  Grid grid(const Size&) const { return {}; }
  Pixels prepare(const ImageView& image) const;
};

Steps read_steps(const KeyReader& reader);
// Gemma 3's: both sides in the tower's size, with SigLIP's levels; nothing is cut out.
Steps read_gemma_steps(const KeyReader& reader);

}  // namespace awq2trt
