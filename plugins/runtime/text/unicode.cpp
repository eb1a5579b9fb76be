// UTF-8 by hand, classes of characters by utf8proc; see unicode.h.
#include "text/unicode.h"

#include <utf8proc.h>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {
namespace {

bool is_continuation(unsigned char byte) { return (byte & 0xC0) == 0x80; }

// The range of a character's second byte, which excludes overlong forms, surrogates and everything above U+10FFFF.
bool is_second_byte(unsigned char first, unsigned char second) {
  switch (first) {
    case 0xE0:
      return second >= 0xA0 && second <= 0xBF;
    case 0xED:
      return second >= 0x80 && second <= 0x9F;
    case 0xF0:
      return second >= 0x90 && second <= 0xBF;
    case 0xF4:
      return second >= 0x80 && second <= 0x8F;
    default:
      return is_continuation(second);
  }
}

int expected_length(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  if (first >= 0xF0 && first <= 0xF4) return 4;
  return 0;
}

utf8proc_category_t category(char32_t character) { return utf8proc_category(static_cast<utf8proc_int32_t>(character)); }

}  // namespace

int character_length(std::string_view text) {
  if (text.empty()) return -1;
  const unsigned char first = text[0];
  const int length = expected_length(first);
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= text.size()) return -1;
    const unsigned char byte = text[i];
    if (i == 1 ? !is_second_byte(first, byte) : !is_continuation(byte)) return 0;
  }
  return length;
}

size_t ill_formed_length(std::string_view text) {
  const unsigned char first = text[0];
  const size_t length = expected_length(first);
  size_t i = 1;
  while (i < length && i < text.size()) {
    const unsigned char byte = text[i];
    if (i == 1 ? !is_second_byte(first, byte) : !is_continuation(byte)) break;
    ++i;
  }
  return i;
}

size_t find_ill_formed(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const int length = character_length(text.substr(i));
    if (length <= 0) return i;
    i += length;
  }
  return std::string_view::npos;
}

void require_utf8(std::string_view text, const std::string& where) {
  const size_t position = find_ill_formed(text);
  if (position != std::string_view::npos) {
    throw Error(ErrorCode::kInvalidUtf8, "not UTF-8 at byte " + std::to_string(position), where,
                "convert the text to UTF-8, or replace everything else by U+FFFD.");
  }
}

char32_t next_character(std::string_view text, size_t* position) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[*position + i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) {
    *position += 1;
    return first;
  }
  if (first < 0xE0) {
    const char32_t character = (first & 0x1Fu) << 6 | (byte(1) & 0x3Fu);
    *position += 2;
    return character;
  }
  if (first < 0xF0) {
    const char32_t character = (first & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    *position += 3;
    return character;
  }
  const char32_t character =
      (first & 0x07u) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu);
  *position += 4;
  return character;
}

size_t previous_character(std::string_view text, size_t position) {
  do {
    --position;
  } while (position > 0 && is_continuation(text[position]));
  return position;
}

void append_character(std::string* text, char32_t character) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes);
  text->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (const char byte : text) count += !is_continuation(byte);
  return count;
}

bool is_space(char32_t character) {
  return (character >= 0x09 && character <= 0x0D) || character == 0x20 || character == 0x85 || character == 0xA0 ||
         character == 0x1680 || (character >= 0x2000 && character <= 0x200A) || character == 0x2028 ||
         character == 0x2029 || character == 0x202F || character == 0x205F || character == 0x3000;
}

bool is_number(char32_t character) {
  if (character < 0x80) return character >= '0' && character <= '9';
  const utf8proc_category_t found = category(character);
  return found == UTF8PROC_CATEGORY_ND || found == UTF8PROC_CATEGORY_NL || found == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t character) {
  if (character < 0x80) {
    return (character >= '!' && character <= '/') || (character >= ':' && character <= '@') ||
           (character >= '[' && character <= '`') || (character >= '{' && character <= '~');
  }
  const utf8proc_category_t found = category(character);
  return found >= UTF8PROC_CATEGORY_PC && found <= UTF8PROC_CATEGORY_PO;
}

bool is_mark(char32_t character) {
  const utf8proc_category_t found = category(character);
  return found == UTF8PROC_CATEGORY_MN || found == UTF8PROC_CATEGORY_MC || found == UTF8PROC_CATEGORY_ME;
}

bool is_word(char32_t character) {
  const utf8proc_category_t found = category(character);
  return (found >= UTF8PROC_CATEGORY_LU && found <= UTF8PROC_CATEGORY_LO) || is_mark(character) ||
         found == UTF8PROC_CATEGORY_ND || found == UTF8PROC_CATEGORY_NL || found == UTF8PROC_CATEGORY_PC ||
         character == 0x200C || character == 0x200D || (character >= 0x24B6 && character <= 0x24E9) ||
         (character >= 0x1F130 && character <= 0x1F149) || (character >= 0x1F150 && character <= 0x1F169) ||
         (character >= 0x1F170 && character <= 0x1F189);
}

char32_t to_lower(char32_t character) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character)));
}

}  // namespace awq2trt
