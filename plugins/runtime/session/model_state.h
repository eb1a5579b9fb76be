// A loaded model. In: a directory. Out: its backend, its tokenizer and its chat template, checked against each other.
// It never changes, and serves any number of sessions.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "artifact/manifest.h"
#include "awq2trt/awq2trt.hpp"
#include "backend/backend.h"
#include "session/sight.h"
#include "session/tables.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace awq2trt {
namespace detail {

class ModelState {
 public:
  std::string directory;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null if the model has none
  std::unique_ptr<Sight> sight;                 // null for a model of text
  std::unique_ptr<DecoderTables> tables;        // null if the decoder reads none
  std::vector<int32_t> stop_tokens;             // the model's own
};

// `text`: the tables of a text, for a decoder that reads some; otherwise null.
using OpenBackend =
    std::function<std::unique_ptr<Backend>(const Manifest& manifest, std::shared_ptr<const Tables> text)>;

// Throws Error.
std::shared_ptr<const ModelState> load_model(const std::string& directory, const LoadOptions& options);
// The same with a backend that is opened last.
std::shared_ptr<const ModelState> load_model(const std::string& directory, Verify verify, const OpenBackend& open);

}  // namespace detail
}  // namespace awq2trt
