// What a decoder reads that is the same in every call until another image is shown, whichever kind of model it is. In:
// a prompt with images. Out: numbers of all tables; slots behind the prompt are those of a text that goes on.
//
// The same as awq2trt/runtime/tables.py; the kinds are in files of the names that they have there.
#pragma once

#include <memory>
#include <string>

#include "artifact/manifest.h"
#include "backend/backend.h"
#include "backend/contract.h"
#include "session/prompt.h"

namespace awq2trt {
namespace detail {

class DecoderTables {
 public:
  virtual ~DecoderTables() = default;

  // Those of a text, which all sessions share.
  const std::shared_ptr<const Tables>& text() const { return text_; }
  // `prompt` has at most as many tokens as the cache.
  std::shared_ptr<const Tables> of(const Prompt& prompt) const;

  // Whether image tokens that stand side by side must all be new in the same call.
  virtual bool whole_rows() const { return false; }
  // Refuses more images than a conversation may have. Throws Error, kTooLong.
  virtual void require_images(size_t) const {}

 protected:
  explicit DecoderTables(Tables text) : text_(std::make_shared<const Tables>(std::move(text))) {}

 private:
  // Changes the tables of a text to those of a prompt with images.
  virtual void place(const Prompt& prompt, Tables* tables) const = 0;

  std::shared_ptr<const Tables> text_;
};

// Null for a decoder that reads none. Throws Error, kUnsupported, if the manifest does not say what is in them.
std::unique_ptr<DecoderTables> tables_of(const Manifest& manifest, const Contract& contract, const std::string& where);

}  // namespace detail
}  // namespace awq2trt
