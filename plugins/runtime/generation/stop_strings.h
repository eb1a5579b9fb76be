// Ends an answer before a text. In: pieces of the answer; out: what certainly belongs to it. An ending that may be the
// beginning of a stop string is held back, so that nothing of the stop string is ever given.
//
// The answer ends where the first stop string is whole; of several that end there, the longest counts. So the pieces in
// which the text comes make no difference.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace awq2trt {

class StopStrings {
 public:
  // Throws Error, kBadArgument, for an empty text, kInvalidUtf8 for one that is none.
  explicit StopStrings(const std::vector<std::string>& texts);

  std::string push(std::string_view piece);  // after a stop string is found, nothing
  std::string finish();                      // what was held back, where the answer ends without a stop string
  bool found() const { return found_; }

 private:
  // A stop string that is looked for as Knuth, Morris and Pratt do.
  struct Pattern {
    std::string text;
    std::vector<size_t> shorter;  // of each beginning of `text`: length of its longest ending that also begins `text`
    size_t matched = 0;           // length of the longest beginning of `text` that what was pushed ends with
    void push(char byte);
  };

  std::vector<Pattern> patterns_;
  std::string held_;
  bool found_ = false;
};

}  // namespace awq2trt
