// A session: its tokens, those of them that are in the cache, and the messages and images that they came from. In:
// messages, text, tokens, images. Out: answers.
#pragma once

#include <atomic>
#include <ctime>
#include <memory>
#include <string_view>
#include <vector>

#include "awq2trt/awq2trt.hpp"
#include "backend/backend.h"
#include "session/model_state.h"
#include "session/prompt.h"

namespace awq2trt {
namespace detail {

class SessionState {
 public:
  SessionState(std::shared_ptr<const ModelState> model, std::unique_ptr<Cache> cache);

  void append(const std::vector<Message>& messages);
  void append_text(std::string_view text, bool allow_special);
  void append_tokens(const std::vector<int32_t>& tokens);
  void append_image(const uint8_t* rgb, int32_t width, int32_t height);
  Result generate(const GenerateOptions& options, const TextCallback& callback);
  std::vector<float> logits();
  void rewind(int64_t tokens);
  std::unique_ptr<SessionState> fork();
  void cancel() noexcept { cancelled_ = true; }
  std::vector<int32_t> tokens();
  int64_t capacity() const { return cache_->capacity(); }

 private:
  class Use;
  class Answering;

  // The state of a conversation after messages were appended.
  struct Turn {
    size_t messages;  // of `messages_`
    size_t images;    // of `shown_`
    size_t tokens;    // of `prompt_`; what follows is the answer
  };

  std::vector<Message> with_answer() const;
  Prompt encode(const std::vector<Message>& messages, const std::vector<Pieces>& images) const;
  void add_plain(const Prompt& prompt);
  size_t uncut(size_t token) const;
  void replace_prompt(Prompt prompt, size_t same);
  void require_room(size_t tokens, size_t image_tokens, bool more = false) const;
  void require_prompt() const;
  void take_back();
  int64_t next_length() const;
  void place_tables();
  void run_next(int64_t length);
  bool run_waiting(bool may_cancel);

  std::shared_ptr<const ModelState> model_;
  std::unique_ptr<Cache> cache_;
  Prompt prompt_;                         // all tokens; those after the cache's position wait
  std::vector<Pieces> waiting_;           // images without a place
  std::shared_ptr<const Tables> tables_;  // for a decoder that reads some: what the last call read
  bool placed_ = false;                   // `tables_` are those of the prompt
  std::vector<float> rows_;               // for a decoder of embeddings: what it reads in a call
  bool scored_ = false;                   // the cache's scores are those of the last token

  std::time_t begun_;  // the current time for templates: a second rendering is the same
  bool conversing_ = false;
  size_t base_ = 0;  // of `prompt_`, where the conversation began
  std::vector<Message> messages_;
  std::vector<Pieces> shown_;  // images at the markers of `messages_`
  std::vector<Turn> turns_;

  std::atomic<bool> busy_{false}, cancelled_{false};
};

}  // namespace detail
}  // namespace awq2trt
