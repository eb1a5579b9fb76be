// Changes to a text before it is split. In: a normalizer of tokenizer.json; out: an object that changes text.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace awq2trt {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void apply_(std::string* text) const = 0;  // UTF-8 in, UTF-8 out
};

// nullptr where `definition` is null. Throws Error on anything unknown.
std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& definition, const std::string& where);

}  // namespace awq2trt
