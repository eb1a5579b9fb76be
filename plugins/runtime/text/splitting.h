// What happens to the matches when a text is split by a pattern: the five behaviours of tokenizer.json.
#pragma once

#include <string>
#include <vector>

#include "text/regex.h"

namespace awq2trt {

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Throws Error on an unknown name.
Behavior read_behavior(const std::string& name, const std::string& where);

// Collects the parts of one word, in order, and applies a behaviour to them.
class Splitter {
 public:
  Splitter(Behavior behavior, std::vector<Span>* words) : behavior_(behavior), words_(*words) {}

  void begin() { first_ = words_.size(), previous_match_ = false, pending_ = false; }
  void add(Span part, bool is_match);  // parts follow each other without gaps
  void end();
  bool dropped_first() const { return dropped_first_; }  // the first part of the first word was removed

 private:
  void push(Span part) {
    if (part.end > part.begin) words_.push_back(part);
  }

  Behavior behavior_;
  std::vector<Span>& words_;
  size_t first_ = 0;  // where the current word begins in `words_`
  bool previous_match_ = false, pending_ = false, any_ = false, dropped_first_ = false;
  Span held_{};  // kMergedWithNext: a match that waits for what follows
};

}  // namespace awq2trt
