// A model's chat template. In: the messages of a conversation; out: the text that the model was trained on, in parts
// that the template wrote and parts that came from messages, so that what users write never becomes a special token.
//
// Two mechanisms tell the parts apart. The engine records with each piece of text whether it came from a message, and
// our limits do so where the engine forgets it (engine_limits.h). In addition, before the template runs, each special
// token's text within a message gets a private mark inside, a noncharacter that no message has; wherever the template
// puts that text, the mark splits it. Rendered text has no marks.
//
// Source of the engine: plugins/third_party/llama_cpp_jinja.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace jinja {
struct program;
}

namespace awq2trt {

class Tokenizer;

struct RenderedPart {
  std::string text;
  bool trusted;  // the template's own: special tokens count
};

struct RenderOptions {
  bool add_generation_prompt = true;
  std::time_t now = 0;  // the time that strftime_now returns, in local time
};

// One object serves any number of threads at once.
class ChatTemplate {
 public:
  // Reads chat_template.jinja, tokenizer_config.json, whose tokens (bos_token and the like) the template can use, or
  // chat_template.json. Throws Error, kNotFound if the directory has no template.
  static std::unique_ptr<ChatTemplate> from_directory(const std::string& directory);
  // `variables`: an object of texts, e.g. {"bos_token": "<s>"}.
  ChatTemplate(const std::string& source, const nlohmann::ordered_json& variables, const std::string& where);
  ~ChatTemplate();

  // `messages`: a list of objects with role and content. Special tokens within messages are marked only if a
  // `tokenizer` is given. Throws Error: kTemplateRaised if the template refuses the messages, kLimit if it takes too
  // long.
  std::vector<RenderedPart> render(const nlohmann::ordered_json& messages, const Tokenizer* tokenizer,
                                   const RenderOptions& options) const;

 private:
  std::string where_;
  std::string source_;
  std::unique_ptr<jinja::program> program_;
  nlohmann::ordered_json variables_;
};

// Parses a JSON list of messages; throws Error if the text is not JSON or is nested too deeply.
nlohmann::ordered_json read_messages(std::string_view text);

}  // namespace awq2trt
