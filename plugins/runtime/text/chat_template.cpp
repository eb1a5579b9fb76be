// See chat_template.h.
#include "text/chat_template.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "awq2trt/awq2trt.hpp"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "text/engine_limits.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace awq2trt {
namespace {

using json = nlohmann::ordered_json;

constexpr size_t kLongestSource = 262'144;  // bytes of a template; published ones have up to 30,000
constexpr size_t kDeepestJson = 32;         // levels of messages
constexpr size_t kLongestMessages = size_t{1} << 25;
constexpr size_t kLongestExpression = 2'000;  // tokens between {% and %}; published ones have up to 200
constexpr size_t kDeepestSource = 60;         // brackets, blocks and the like within each other
constexpr size_t kMostBranches = 100;         // elif in one if

// Roles in use. Any other role counts as a user's text: a template that builds "<|role|>" from it makes no special
// token.
constexpr const char* kRoles[] = {"system",  "user",  "assistant",   "tool",          "developer", "function",
                                  "ipython", "model", "observation", "tool_response", "context"};

// Noncharacters, which exchanged text does not contain: U+FDD0 to U+FDEF.
constexpr char32_t kFirstMark = 0xFDD0, kLastMark = 0xFDEF;

// The parser is recursive: this limits its depth before it begins.
void check_nesting(const jinja::lexer_result& lexed, const std::string& where) {
  using Token = jinja::token;
  size_t brackets = 0, blocks = 0, in_a_row = 0, expression = 0, branches = 0, recursive = 0;
  const auto too_deep = [&](const char* what) {
    throw Error(ErrorCode::kLimit, std::string("the template has too many ") + what, where, "");
  };
  for (size_t i = 0; i < lexed.tokens.size(); ++i) {
    const Token& token = lexed.tokens[i];
    if (token.t == Token::open_statement || token.t == Token::open_expression || token.t == Token::text) {
      brackets = expression = recursive = 0;
    }
    if (token.t == Token::open_paren || token.t == Token::open_square_bracket || token.t == Token::open_curly_bracket) {
      ++brackets;
    }
    if ((token.t == Token::close_paren || token.t == Token::close_square_bracket ||
         token.t == Token::close_curly_bracket) &&
        brackets > 0) {
      --brackets;
    }
    const bool statement = i > 0 && lexed.tokens[i - 1].t == Token::open_statement;
    if (statement && token.value.rfind("end", 0) == 0) {
      if (blocks > 0) --blocks;
      branches = 0;
    } else if (statement && token.value == "elif") {
      ++branches;
    } else if (statement && token.value != "else" && token.value != "break" && token.value != "continue") {
      const auto ends_or_assigns = [](const auto& later) {
        return later.t == Token::close_statement || later.t == Token::equals;
      };
      const auto found = std::find_if(lexed.tokens.begin() + i, lexed.tokens.end(), ends_or_assigns);
      const bool assigns = token.value == "set" && found != lexed.tokens.end() && found->t == Token::equals;
      if (!assigns) ++blocks;
    }
    // Operators that recurse to their right.
    const bool unary = token.t == Token::unary_operator || token.value == "not";
    in_a_row = unary || token.t == Token::additive_binary_operator ? in_a_row + 1 : 0;
    if (!statement && (token.value == "if" || token.value == "else")) ++recursive;
    if (brackets > kDeepestSource || blocks > kDeepestSource || recursive > kDeepestSource) too_deep("nested parts");
    if (in_a_row > kDeepestSource) too_deep("operators in a row");
    if (branches > kMostBranches) too_deep("branches in one if");
    if (++expression > kLongestExpression) too_deep("parts in one expression");
  }
}

// The engine's text about an error ends with the message that matters.
std::string reason_of(const std::exception& error) {
  std::string text = error.what();
  for (const char* lead : {"Error: Jinja Exception: ", "Jinja Exception: ", "Error: "}) {
    const size_t found = text.rfind(lead);
    if (found != std::string::npos) return text.substr(found + std::string(lead).size());
  }
  while (!text.empty() && text.front() == '\n') text.erase(0, 1);
  return text;
}

bool is_role(const std::string& text) {
  return std::any_of(std::begin(kRoles), std::end(kRoles), [&](const char* role) { return text == role; });
}

// Texts of special tokens, to be marked in messages.
class Marker {
 public:
  Marker(const Tokenizer* tokenizer, const std::string& messages) {
    for (char32_t mark = kFirstMark; mark <= kLastMark && mark_.empty(); ++mark) {
      append_character(&mark_, mark);
      if (messages.find(mark_) != std::string::npos) mark_.clear();
    }
    if (mark_.empty()) {
      throw Error(ErrorCode::kBadArgument, "the messages have every noncharacter from U+FDD0 to U+FDEF", "messages",
                  "leave one of them out.");
    }
    if (tokenizer == nullptr) return;
    for (const AddedToken& token : tokenizer->added_tokens()) {
      if (token.special) tokens_.push_back(token.content);
    }
  }

  const std::string& mark() const { return mark_; }

  // Puts a mark after the first character of each special token, or before it if the token has only one.
  std::string apply(const std::string& text) const {
    std::vector<size_t> places;
    for (const std::string& token : tokens_) {
      size_t first = 0;
      next_character(token, &first);
      if (first == token.size()) first = 0;
      for (size_t at = text.find(token); at != std::string::npos; at = text.find(token, at + 1)) {
        places.push_back(at + first);
      }
    }
    if (places.empty()) return text;
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    std::string marked;
    size_t done = 0;
    for (const size_t place : places) {
      marked.append(text, done, place - done);
      marked += mark_;
      done = place;
    }
    return marked + text.substr(done);
  }

 private:
  std::string mark_;
  std::vector<std::string> tokens_;
};

jinja::value to_value(const json& from, const Marker& marker, bool is_message) {
  if (from.is_null()) return jinja::mk_val<jinja::value_none>();
  if (from.is_boolean()) return jinja::mk_val<jinja::value_bool>(from.get<bool>());
  if (from.is_number_integer()) return jinja::mk_val<jinja::value_int>(from.get<int64_t>());
  if (from.is_number()) return jinja::mk_val<jinja::value_float>(from.get<double>());
  if (from.is_string()) {
    auto text = jinja::mk_val<jinja::value_string>(marker.apply(from.get<std::string>()));
    text->mark_input();
    return text;
  }
  if (from.is_array()) {
    auto list = jinja::mk_val<jinja::value_array>();
    for (const json& item : from) list->push_back(to_value(item, marker, is_message));
    return list;
  }
  auto object = jinja::mk_val<jinja::value_object>();
  for (const auto& [key, item] : from.items()) {
    if (is_message && key == "role" && item.is_string() && is_role(item.get<std::string>())) {
      object->insert(key, jinja::mk_val<jinja::value_string>(item.get<std::string>()));
    } else {
      object->insert(marker.apply(key), to_value(item, marker, false));
    }
  }
  return object;
}

// Removes the marks from the parts: the character after a mark is not the template's, whatever the engine reports.
std::vector<RenderedPart> without_marks(const jinja::string& rendered, const std::string& mark) {
  std::vector<RenderedPart> result;
  const auto add = [&](std::string_view text, bool trusted) {
    if (text.empty()) return;
    if (result.empty() || result.back().trusted != trusted) result.push_back({"", trusted});
    result.back().text += text;
  };
  bool behind_mark = false;
  for (const jinja::string_part& part : rendered.parts) {
    std::string_view rest = part.val;
    while (!rest.empty()) {
      if (rest.substr(0, mark.size()) == mark) {
        behind_mark = true;
        rest.remove_prefix(mark.size());
        continue;
      }
      if (behind_mark) {
        const size_t length = static_cast<size_t>(std::max(1, character_length(rest)));
        add(rest.substr(0, length), false);
        rest.remove_prefix(length);
        behind_mark = false;
        continue;
      }
      const size_t end = std::min(rest.find(mark), rest.size());
      add(rest.substr(0, end), !part.is_input);
      rest.remove_prefix(end);
    }
  }
  return result;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return "";
  return std::string(std::istreambuf_iterator<char>(file), {});
}

json parse_json(std::string_view text, const std::string& where) {
  const auto shallow = [&](int depth, json::parse_event_t, json&) {
    if (depth > static_cast<int>(kDeepestJson)) {
      throw Error(ErrorCode::kLimit, "nested more than " + std::to_string(kDeepestJson) + " levels deep", where, "");
    }
    return true;
  };
  try {
    return json::parse(text, shallow);
  } catch (const json::exception& error) {
    throw Error(ErrorCode::kMalformed, std::string("not JSON: ") + error.what(), where, "");
  }
}

// The template of tokenizer_config.json: a text, or a list of templates with names.
std::string source_in(const json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const json& named : *found) {
      if (named.is_object() && named.value("name", json()) == "default" &&
          named.value("template", json()).is_string()) {
        return named.at("template").get<std::string>();
      }
    }
  }
  return "";
}

}  // namespace

json read_messages(std::string_view text) {
  if (text.size() > kLongestMessages) {
    throw Error(ErrorCode::kLimit, "more than " + std::to_string(kLongestMessages) + " bytes", "messages", "");
  }
  require_utf8(text, "messages");
  return parse_json(text, "messages");
}

std::unique_ptr<ChatTemplate> ChatTemplate::from_directory(const std::string& directory) {
  const std::string config_path = directory + "/tokenizer_config.json";
  const std::string config_text = read_file(config_path);
  const json config = config_text.empty() ? json::object() : parse_json(config_text, config_path);
  if (!config.is_object()) throw Error(ErrorCode::kMalformed, "an object is expected", config_path, "");
  std::string where = directory + "/chat_template.jinja";
  std::string source = read_file(where);
  if (source.empty()) {
    where = config_path + ": chat_template";
    source = source_in(config);
  }
  if (source.empty()) {  // models that see, published before transformers kept templates in files of their own
    where = directory + "/chat_template.json";
    const std::string text = read_file(where);
    const json processor = text.empty() ? json::object() : parse_json(text, where);
    if (processor.is_object()) source = source_in(processor);
  }
  if (source.empty()) {
    throw Error(ErrorCode::kNotFound, "the model has no chat template", directory,
                "continue plain text instead, or add a chat_template.jinja.");
  }
  json variables = json::object();
  for (const auto& [key, item] : config.items()) {
    if (key.size() < 6 || key.compare(key.size() - 6, 6, "_token") != 0) continue;
    const json content = item.is_object() ? item.value("content", json()) : item;
    if (content.is_string()) variables[key] = content;
  }
  return std::make_unique<ChatTemplate>(source, variables, where);
}

ChatTemplate::ChatTemplate(const std::string& source, const json& variables, const std::string& where)
    : where_(where), variables_(variables) {
  require_utf8(source, where);
  if (source.size() > kLongestSource) {
    throw Error(ErrorCode::kLimit, "the template has more than " + std::to_string(kLongestSource) + " bytes", where,
                "");
  }
  try {
    jinja::lexer lexer;
    const jinja::lexer_result lexed = lexer.tokenize(source);
    check_nesting(lexed, where);
    source_ = lexed.source;
    program_ = std::make_unique<jinja::program>(jinja::parse_from_tokens(lexed));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kMalformed, "not a template: " + reason_of(error), where, "");
  }
}

ChatTemplate::~ChatTemplate() = default;

std::vector<RenderedPart> ChatTemplate::render(const json& messages, const Tokenizer* tokenizer,
                                               const RenderOptions& options) const {
  if (!messages.is_array()) {
    throw Error(ErrorCode::kBadArgument, std::string("a list is expected, not ") + messages.type_name(), "messages",
                "");
  }
  const Marker marker(tokenizer, messages.dump());
  const jinja::ExecutionBudget budget;
  try {
    jinja::context context(source_);
    context.current_time = options.now;
    for (const auto& [key, text] : variables_.items()) {
      context.set_val(key, jinja::mk_val<jinja::value_string>(text.get<std::string>()));
    }
    context.set_val("messages", to_value(messages, marker, true));
    context.set_val("add_generation_prompt", jinja::mk_val<jinja::value_bool>(options.add_generation_prompt));
    context.set_val("tools", jinja::mk_val<jinja::value_none>());
    context.set_val("documents", jinja::mk_val<jinja::value_none>());
    jinja::runtime runtime(context);
    const jinja::value_array results = runtime.execute(*program_);
    std::vector<RenderedPart> parts =
        without_marks(jinja::runtime::gather_string_parts(results)->as_string(), marker.mark());
    for (const RenderedPart& part : parts) {
      if (find_ill_formed(part.text) != std::string_view::npos) {
        throw Error(ErrorCode::kUnsupported, "the template cuts a character of several bytes", where_, "");
      }
    }
    return parts;
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {
    const bool limit = jinja::ExecutionBudget::exceeded();
    throw Error(
        limit ? ErrorCode::kLimit : ErrorCode::kTemplateRaised,
        "the chat template refuses the messages: " + reason_of(error), where_,
        limit ? "use the template that the model's publisher wrote." : "change the messages, or continue plain text.");
  }
}

}  // namespace awq2trt
