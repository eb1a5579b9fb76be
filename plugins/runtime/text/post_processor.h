// The special tokens that a tokenizer puts around a text, such as the beginning of the sequence. In: a post_processor
// of tokenizer.json; out: the ids before and after the text.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace awq2trt {

struct SpecialFrame {
  std::vector<int32_t> before, behind;
};

// Throws Error on anything unknown. Empty where `definition` is null.
SpecialFrame read_post_processor(const nlohmann::json& definition, const std::string& where);

}  // namespace awq2trt
