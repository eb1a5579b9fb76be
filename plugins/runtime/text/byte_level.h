// GPT-2's alphabet: every byte as a printable character, so that a vocabulary of byte strings can be written as text.
// Bytes that are printable in Latin-1 stand for themselves, the others for U+0100 and following, in order.
// Source: bytes_to_unicode of https://github.com/openai/gpt-2/blob/master/src/encoder.py
#pragma once

#include <string>
#include <string_view>

namespace awq2trt::byte_level {

std::string to_characters(std::string_view bytes);

// False if `characters` has one outside the alphabet; `bytes` is then meaningless.
bool to_bytes(std::string_view characters, std::string* bytes);

// The pattern by which the pre-tokenizer ByteLevel splits.
constexpr char kPattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace awq2trt::byte_level
