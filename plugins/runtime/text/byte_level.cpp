// See byte_level.h.
#include "text/byte_level.h"

#include <array>
#include <cstdint>

#include "text/unicode.h"

namespace awq2trt::byte_level {
namespace {

constexpr char32_t kAlphabetEnd = 0x144;  // 256 plus the 68 bytes that do not stand for themselves

struct Alphabet {
  std::array<std::string, 256> characters;
  std::array<int16_t, kAlphabetEnd> bytes;
};

const Alphabet& alphabet() {
  static const Alphabet made = [] {
    Alphabet result;
    result.bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t character = printable ? static_cast<char32_t>(byte) : next++;
      append_character(&result.characters[byte], character);
      result.bytes[character] = static_cast<int16_t>(byte);
    }
    return result;
  }();
  return made;
}

}  // namespace

std::string to_characters(std::string_view bytes) {
  std::string result;
  for (const char byte : bytes) result += alphabet().characters[static_cast<unsigned char>(byte)];
  return result;
}

bool to_bytes(std::string_view characters, std::string* bytes) {
  bytes->clear();
  for (size_t i = 0; i < characters.size();) {
    const char32_t character = next_character(characters, &i);
    const int byte = character < kAlphabetEnd ? alphabet().bytes[character] : -1;
    if (byte < 0) return false;
    *bytes += static_cast<char>(byte);
  }
  return true;
}

}  // namespace awq2trt::byte_level
