// Ends an answer before a stop string. In: pieces of the answer; out: the text that certainly belongs to it. An ending
// that may be the beginning of a stop string is held back, so that no part of a stop string is ever given.
//
// The answer ends where the first stop string is complete; of several that end there, the longest counts. So it makes
// no difference into which pieces the text is cut.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace awq2trt {

class StopStrings {
 public:
  // Throws Error: kBadArgument for an empty string, kInvalidUtf8 for one that is not UTF-8.
  explicit StopStrings(const std::vector<std::string>& texts);

  std::string push(std::string_view piece);  // gives nothing after a stop string is found
  std::string finish();                      // what was held back, if the answer ends without a stop string
  bool found() const { return found_; }

 private:
  // A stop string, searched for by the algorithm of Knuth, Morris and Pratt.
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
