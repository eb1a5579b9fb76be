// UTF-8 and the classes of characters that tokenizers ask for. In: text that `require_utf8` has let through; out: code
// points, and whether they are spaces, numbers, punctuation, marks or parts of words.
//
// The classes come from utf8proc, so from its version of Unicode; Hugging Face's tokenizers have tables of several
// versions. They differ only for characters added since.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace awq2trt {

constexpr char kReplacementCharacter[] = "\xEF\xBF\xBD";  // U+FFFD

// Length of the well-formed character at the start of `text`: 1 to 4; 0 if it is ill-formed; -1 if `text` ends before
// the character does.
int character_length(std::string_view text);

// Bytes at the start of ill-formed `text` that one U+FFFD stands for: the "maximal subpart" of Unicode 3.9.
size_t ill_formed_length(std::string_view text);

// Byte offset of the first ill-formed character, or npos.
size_t find_ill_formed(std::string_view text);
void require_utf8(std::string_view text, const std::string& where);

// The character at `*position` of well-formed text; moves `position` past it.
char32_t next_character(std::string_view text, size_t* position);
// Where the character that ends at `position` begins.
size_t previous_character(std::string_view text, size_t position);
void append_character(std::string* text, char32_t character);
size_t count_characters(std::string_view text);

bool is_space(char32_t character);        // the property White_Space
bool is_number(char32_t character);       // general categories Nd, Nl, No
bool is_punctuation(char32_t character);  // ASCII punctuation, general categories P*
bool is_mark(char32_t character);         // general categories M*
bool is_word(char32_t character);         // \w of regular expressions: letters, marks, digits, connectors, joiners
char32_t to_lower(char32_t character);    // the simple mapping

}  // namespace awq2trt
