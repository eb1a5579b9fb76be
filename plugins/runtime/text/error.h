// What goes wrong while text is read or written: a code for programs, and for people what was got, where, and the fix.
// Thrown inside the library; the C interface turns it into its code and its text.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace awq2trt {

enum class ErrorCode : int32_t {
  kBadArgument = 1,     // the caller's: a null pointer, an empty list where one is needed
  kNotFound = 2,        // no such file
  kMalformed = 3,       // a file that is not what its format says: JSON, a regular expression, a vocabulary with holes
  kUnsupported = 4,     // a part of tokenizer.json or of a template that this library does not know
  kInvalidUtf8 = 5,     // text that is not UTF-8
  kTemplateRaised = 6,  // the chat template refused the messages
  kLimit = 7,           // deeper, longer or larger than what is worked on
  kInternal = 8,        // out of memory, and what nobody foresaw
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& what, const std::string& where, const std::string& fix)
      : std::runtime_error(where + ": " + what + (fix.empty() ? "" : "\n  fix: " + fix)), code_(code) {}

  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace awq2trt
