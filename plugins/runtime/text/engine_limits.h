// Limits on chat templates, which are programs that come with a model: on steps, nesting, and the sizes of what they
// make. Called from the engine's interpreter (cmake/limit_engine.cmake). Besides, what a method makes of a user's text
// is marked as the user's, which the engine's own methods forget here and there.
//
// The limits are far above what templates need: rendering a conversation of 1000 messages takes some 50,000 steps.
#pragma once

#include <cstddef>
#include <stdexcept>

#include "jinja/value.h"

namespace jinja {

struct statement;

// A template went beyond a limit.
struct limit_exceeded : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// While one of them lives, the limits of this thread are counted anew.
class ExecutionBudget {
 public:
  ExecutionBudget();
  ~ExecutionBudget();
  static bool exceeded();  // whether a limit was what ended the last template of this thread
};

// One level of nesting of the interpreter.
class ExecutionLevel {
 public:
  ExecutionLevel();
  ~ExecutionLevel();
  void check(const statement& executed, const value& result) const;
};

// Throws if `child` holds `parent`, or is it.
void refuse_cycle(const value& parent, const value& child);

}  // namespace jinja
