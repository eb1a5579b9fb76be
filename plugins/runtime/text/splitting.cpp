// See splitting.h.
#include "text/splitting.h"

#include "text/json_fields.h"

namespace awq2trt {

Behavior read_behavior(const std::string& name, const std::string& where) {
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  refuse_unknown("the behavior " + name, where);
}

void Splitter::add(Span part, bool is_match) {
  switch (behavior_) {
    case Behavior::kRemoved:
      if (is_match) {
        if (!any_ && part.size() > 0) dropped_first_ = true;
      } else {
        push(part);
      }
      break;
    case Behavior::kIsolated:
      push(part);
      break;
    case Behavior::kMergedWithPrevious:
      if (is_match && !previous_match_ && words_.size() > first_) {
        words_.back().end = part.end;
      } else {
        push(part);
      }
      break;
    case Behavior::kContiguous:
      if (is_match == previous_match_ && words_.size() > first_) {
        words_.back().end = part.end;
      } else {
        push(part);
      }
      break;
    case Behavior::kMergedWithNext:
      // The last of several matches in a row is joined to what follows.
      if (pending_) {
        pending_ = false;
        if (is_match) {
          push(held_);
        } else {
          part.begin = held_.begin;
        }
      }
      if (is_match) {
        held_ = part;
        pending_ = true;
      } else {
        push(part);
      }
      break;
  }
  any_ = any_ || part.size() > 0;
  previous_match_ = is_match;
}

void Splitter::end() {
  if (pending_) push(held_);
  pending_ = false;
}

}  // namespace awq2trt
