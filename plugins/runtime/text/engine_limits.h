// Limits on chat templates, which are programs that come with a model: on steps, nesting, and the sizes of their
// results. Called from the engine's interpreter (cmake/limit_engine.cmake). Also marks the results of methods on a
// user's text as the user's, which some of the engine's own methods forget.
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

// While such an object exists, the limits of this thread count from zero.
class ExecutionBudget {
 public:
  ExecutionBudget();
  ~ExecutionBudget();
  static bool exceeded();  // whether a limit ended the last template of this thread
};

// One level of nesting of the interpreter.
class ExecutionLevel {
 public:
  ExecutionLevel();
  ~ExecutionLevel();
  void check(const statement& executed, const value& result) const;
};

// Throws if `child` is or contains `parent`.
void refuse_cycle(const value& parent, const value& child);

}  // namespace jinja
