// See engine_limits.h.
#include "text/engine_limits.h"

#include <algorithm>
#include <string>

#include "jinja/runtime.h"
#include "text/unicode.h"

namespace jinja {
namespace {

constexpr size_t kSteps = 1'000'000;
constexpr int kDeepest = 200;  // levels; one takes at most 2 kB of stack, 10 kB with sanitizers
constexpr size_t kLongestString = size_t{1} << 26;
constexpr size_t kParts = 1'000'000;  // parts of one string
constexpr int64_t kLongestRange = 1'000'000;
constexpr int64_t kWidestIndent = 1000;

thread_local size_t steps = 0;
thread_local int level = 0;
thread_local bool was_exceeded = false;

[[noreturn]] void exceed(const std::string& what) {
  was_exceeded = true;
  throw limit_exceeded(what);
}

void count_step() {
  if (++steps > kSteps) exceed("the template takes more than " + std::to_string(kSteps) + " steps");
}

void check_length(double length) {
  if (length > static_cast<double>(kLongestString)) {
    exceed("the template makes a text of more than " + std::to_string(kLongestString) + " bytes");
  }
}

// Visits a value and everything in it until `visit` returns true; each visit counts as a step. Returns whether it did.
template <typename Visit>
bool search(const value& root, const Visit& visit, int depth = 0) {
  count_step();
  if (depth > kDeepest) exceed("the template nests values more than " + std::to_string(kDeepest) + " levels deep");
  if (root == nullptr) return false;
  if (visit(root)) return true;
  if (is_val<value_array>(root)) {
    for (const value& item : root->as_array()) {
      if (search(item, visit, depth + 1)) return true;
    }
  } else if (is_val<value_object>(root)) {
    for (const auto& [key, item] : root->as_ordered_object()) {
      if (search(key, visit, depth + 1) || search(item, visit, depth + 1)) return true;
    }
  } else if (is_val<value_kwarg>(root)) {
    return search(cast_val<value_kwarg>(root)->val, visit, depth + 1);
  }
  return false;
}

// An upper bound of the length of a value's text, at most a few times too high; throws if it exceeds the limit.
double weigh(const value& root) {
  double length = 0;
  search(root, [&](const value& one) {
    length += is_val<value_string>(one) ? static_cast<double>(one->val_str.length()) + 8 : 8;
    return false;
  });
  check_length(length);
  return length;
}

bool has_input(const value& root) {
  return search(root, [](const value& one) {
    if (!is_val<value_string>(one)) return false;
    const auto& parts = one->val_str.parts;
    return std::any_of(parts.begin(), parts.end(), [](const string_part& part) { return part.is_input; });
  });
}

// Marks a text as the user's if no part of it is: a method has made it from the user's text.
void mark(const value& made) {
  auto& parts = made->val_str.parts;
  if (std::none_of(parts.begin(), parts.end(), [](const string_part& part) { return part.is_input; })) {
    made->val_str.mark_input();
  }
}

void mark_made_of_input(const value& result, const func_args& args) {
  const bool string_result = is_val<value_string>(result);
  if (!string_result && !is_val<value_array>(result)) return;
  const auto& given = args.get_args();
  if (std::none_of(given.begin(), given.end(), has_input)) return;
  const auto was_given = [&](const value& item) {
    return std::any_of(given.begin(), given.end(), [&](const value& one) {
      if (one == item) return true;
      if (!is_val<value_array>(one)) return false;
      const auto& items = one->as_array();
      return std::find(items.begin(), items.end(), item) != items.end();
    });
  };
  if (string_result) {
    if (!was_given(result)) mark(result);
    return;
  }
  if (was_given(result)) return;
  for (const value& item : result->as_array()) {
    if (is_val<value_string>(item) && !was_given(item)) mark(item);
  }
}

bool is_ascii(const std::string& text) {
  return std::all_of(text.begin(), text.end(), [](unsigned char byte) { return byte < 0x80; });
}

int64_t int_or(const func_args& args, size_t position, int64_t otherwise) {
  if (args.count() <= position || !is_val<value_int>(args.get_args()[position])) return otherwise;
  return args.get_args()[position]->as_int();
}

// What Python's str.strip() removes: characters with the property White_Space, and four separators.
bool is_python_space(char32_t character) {
  return awq2trt::is_space(character) || (character >= 0x1C && character <= 0x1F);
}

// str.strip() by characters; the engine's works on bytes and knows only ASCII.
value strip(const value& input, bool left, bool right) {
  string text = input->as_string();
  auto& parts = text.parts;
  while (left && !parts.empty()) {
    std::string& part = parts.front().val;
    size_t begin = 0;
    while (begin < part.size()) {
      size_t next = begin;
      if (!is_python_space(awq2trt::next_character(part, &next))) break;
      begin = next;
    }
    part.erase(0, begin);
    if (!part.empty()) break;
    parts.erase(parts.begin());
  }
  while (right && !parts.empty()) {
    std::string& part = parts.back().val;
    size_t end = part.size();
    while (end > 0) {
      size_t next = awq2trt::previous_character(part, end);
      const size_t candidate = next;
      if (!is_python_space(awq2trt::next_character(part, &next))) break;
      end = candidate;
    }
    part.erase(end);
    if (!part.empty()) break;
    parts.pop_back();
  }
  return mk_val<value_string>(text);
}

// text[start:stop] by characters.
value slice(const std::string& text, int64_t start, int64_t stop) {
  const auto count = static_cast<int64_t>(awq2trt::count_characters(text));
  const auto clamp = [&](int64_t i) { return std::clamp<int64_t>(i < 0 ? i + count : i, 0, count); };
  start = clamp(start);
  stop = clamp(stop);
  size_t position = 0, begin = 0;
  for (int64_t i = 0; i < stop; ++i) {
    if (i == start) begin = position;
    awq2trt::next_character(text, &position);
  }
  return mk_val<value_string>(start < stop ? text.substr(begin, position - begin) : "");
}

// Methods of text that the engine applies to bytes, here applied to characters; nullptr where it makes no difference.
value call_by_characters(const std::string& name, const func_args& args) {
  if (args.count() == 0 || !is_val<value_string>(args.get_args()[0])) return nullptr;
  const value& input = args.get_args()[0];
  if (args.count() == 1 && (name == "strip" || name == "lstrip" || name == "rstrip")) {
    return strip(input, name != "rstrip", name != "lstrip");
  }
  const std::string text = input->as_string().str();
  if (is_ascii(text)) return nullptr;
  if (name == "length") return mk_val<value_int>(static_cast<int64_t>(awq2trt::count_characters(text)));
  if (name == "slice" && int_or(args, 3, 1) == 1) return slice(text, int_or(args, 1, 0), int_or(args, 2, INT64_MAX));
  for (const char* refused : {"upper", "lower", "title", "capitalize", "slice", "list", "reverse", "truncate"}) {
    if (name == refused) throw std::runtime_error(name + " of text beyond ASCII is not supported");
  }
  return nullptr;
}

void check_before(const std::string& name, bool is_method, const func_args& args) {
  if (!is_method) {
    if (name == "range") {
      const int64_t first = args.count() > 1 ? int_or(args, 0, 0) : 0;
      const int64_t last = args.count() > 1 ? int_or(args, 1, 0) : int_or(args, 0, 0);
      const int64_t step = int_or(args, 2, 1);
      const double count =
          step == 0 ? 0 : (static_cast<double>(last) - static_cast<double>(first)) / static_cast<double>(step);
      if (count > static_cast<double>(kLongestRange)) {
        exceed("the template asks for a range of more than " + std::to_string(kLongestRange));
      }
      // The engine counts one step beyond the end.
      if (std::max({std::abs(static_cast<double>(last)), std::abs(static_cast<double>(first)),
                    std::abs(static_cast<double>(step))}) > 1e15) {
        exceed("the template asks for a range of numbers above 10^15");
      }
      steps += static_cast<size_t>(std::max(0.0, count));
    }
    if (name != "tojson") return;
  }
  double length = 0;
  for (const value& argument : args.get_args()) {
    length += weigh(argument);
    const value inner = is_val<value_kwarg>(argument) ? cast_val<value_kwarg>(argument)->val : argument;
    if ((name == "tojson" || name == "indent") && is_val<value_int>(inner) && inner->as_int() > kWidestIndent) {
      exceed("the template indents by more than " + std::to_string(kWidestIndent));
    }
  }
  // These may repeat one argument as many times as another is long.
  if (name == "replace" || name == "join" || name == "indent" || name == "tojson") {
    double longest_added = 8;
    for (size_t i = 1; i < args.count(); ++i) longest_added = std::max(longest_added, weigh(args.get_args()[i]));
    if (name == "tojson" || name == "indent") longest_added = kWidestIndent;
    double occasions = length;
    if (name == "replace" && args.count() > 1 && is_val<value_string>(args.get_args()[1])) {
      const std::string text = args.get_args()[0]->as_string().str(), old = args.get_args()[1]->as_string().str();
      occasions = 1;
      for (size_t at = 0; !old.empty() && (at = text.find(old, at)) != std::string::npos; at += old.size()) ++occasions;
      if (old.empty()) occasions = static_cast<double>(text.size()) + 1;
    } else if (name == "join" && is_val<value_array>(args.get_args()[0])) {
      occasions = static_cast<double>(args.get_args()[0]->as_array().size());
    } else {
      occasions = 0;
      search(args.get_args()[0], [&](const value& one) {
        ++occasions;
        if (name == "indent" && is_val<value_string>(one)) {
          const std::string text = one->as_string().str();
          occasions += static_cast<double>(std::count(text.begin(), text.end(), '\n'));
        }
        return false;
      });
    }
    check_length(length + occasions * longest_added);
  }
  if (name == "append" && args.count() > 1) refuse_cycle(args.get_args()[0], args.get_args()[1]);
}

}  // namespace

ExecutionBudget::ExecutionBudget() {
  steps = 0;
  level = 0;
  was_exceeded = false;
}
ExecutionBudget::~ExecutionBudget() { level = 0; }
bool ExecutionBudget::exceeded() { return was_exceeded; }

ExecutionLevel::ExecutionLevel() {
  count_step();
  if (level >= kDeepest) exceed("the template nests more than " + std::to_string(kDeepest) + " levels deep");
  ++level;
}
ExecutionLevel::~ExecutionLevel() { --level; }

void ExecutionLevel::check(const statement& executed, const value& result) const {
  if (is_val<value_string>(result)) {
    if (result->val_str.parts.size() > kParts) exceed("the template makes a text of too many parts");
    check_length(static_cast<double>(result->val_str.length()));
    steps += result->val_str.length() / 1024;  // copying it also takes time
  } else if (is_val<value_array>(result) || is_val<value_object>(result)) {
    const bool only_names = dynamic_cast<const identifier*>(&executed) != nullptr ||
                            dynamic_cast<const member_expression*>(&executed) != nullptr;
    if (!only_names) weigh(result);
  }
}

void refuse_cycle(const value& parent, const value& child) {
  if (search(child, [&](const value& one) { return one == parent; }))
    exceed("the template makes a value part of itself");
}

value call_within_limits(const std::string& name, bool is_method, const func_handler& function, const func_args& args) {
  count_step();
  check_before(name, is_method, args);
  value result = is_method ? call_by_characters(name, args) : nullptr;
  if (result == nullptr) result = function(args);
  if (is_method || name == "tojson") mark_made_of_input(result, args);
  return result;
}

}  // namespace jinja
