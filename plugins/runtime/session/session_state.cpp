// See session_state.h.
#include "session/session_state.h"

#include <algorithm>

#include "generation/answer.h"
#include "text/unicode.h"

namespace awq2trt {
namespace detail {
namespace {

[[noreturn]] void refuse_empty() {
  throw Error(ErrorCode::kEmptyPrompt, "there is nothing to continue", "Session", "append messages or text first.");
}

void require_utf8(std::string_view text, const char* where) {
  const size_t at = find_ill_formed(text);
  if (at == std::string_view::npos) return;
  throw Error(ErrorCode::kInvalidUtf8, "the text is not UTF-8 at byte " + std::to_string(at), where,
              "convert it to UTF-8 first.");
}

}  // namespace

// Marks the session as used by one thread.
class SessionState::Use {
 public:
  explicit Use(SessionState* session) : session_(*session) {
    if (session_.busy_.exchange(true)) {
      throw Error(ErrorCode::kBusy, "another thread, or this one's callback, uses the session", "Session",
                  "use a session from one thread at a time; fork() makes a second one.");
    }
  }
  ~Use() { session_.busy_ = false; }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  SessionState& session_;
};

// The session as an answer sees it.
class SessionState::Answering : public Continuation {
 public:
  explicit Answering(SessionState* session) : session_(*session) {}

  const float* scores() override {
    if (!session_.run_waiting(true)) return nullptr;
    logits_.resize(static_cast<size_t>(session_.model_->backend->vocab_size()));
    session_.cache_->read_logits(logits_.data());
    return logits_.data();
  }
  bool finds_best() const override { return true; }
  int32_t best() override { return session_.run_waiting(true) ? session_.cache_->best() : -1; }
  void append(int32_t token) override {
    // The last token of a full session is given although the cache has no place for it.
    if (static_cast<int64_t>(session_.tokens_.size()) >= session_.capacity()) return;
    session_.tokens_.push_back(token);
    session_.scored_ = false;
  }

 private:
  SessionState& session_;
  std::vector<float> logits_;
};

SessionState::SessionState(std::shared_ptr<const ModelState> model, std::unique_ptr<Cache> cache)
    : model_(std::move(model)), cache_(std::move(cache)), begun_(std::time(nullptr)) {}

void SessionState::require_room(size_t tokens) const {
  if (static_cast<int64_t>(tokens) <= capacity()) return;
  const std::string limit = std::to_string(capacity());
  const bool built = capacity() == model_->backend->capacity();
  throw Error(ErrorCode::kTooLong,
              "the session would need " + std::to_string(tokens) + " tokens, but it holds at most " + limit, "Session",
              built ? "shorten the text, rewind(), or build the model again with --max-seq-len " +
                          std::to_string(tokens) + " or more."
                    : "shorten the text, rewind(), or open a session of more SessionOptions::max_tokens.");
}

// The messages so far, including the last answer.
std::vector<Message> SessionState::with_answer() const {
  std::vector<Message> messages = messages_;
  if (!turns_.empty() && tokens_.size() > turns_.back().tokens) {
    const std::vector<int32_t> answer(tokens_.begin() + static_cast<std::ptrdiff_t>(turns_.back().tokens),
                                      tokens_.end());
    messages.push_back({"assistant", model_->tokenizer->decode(answer)});
  }
  return messages;
}

std::vector<int32_t> SessionState::encode(const std::vector<Message>& messages) const {
  if (model_->chat_template == nullptr) {
    throw Error(ErrorCode::kNoTemplate, "this model has no chat template", model_->directory,
                "continue plain text with append_text().");
  }
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Message& message : messages) list.push_back({{"role", message.role}, {"content", message.content}});
  RenderOptions options;
  options.now = begun_;
  const std::vector<RenderedPart> rendered = model_->chat_template->render(list, model_->tokenizer.get(), options);
  std::vector<TextPart> parts;
  for (const RenderedPart& part : rendered) parts.push_back({part.text, part.trusted});
  return model_->tokenizer->encode(parts, false);
}

void SessionState::append(const std::vector<Message>& messages) {
  const Use use(this);
  for (const Message& message : messages) {
    require_utf8(message.role, "Message::role");
    require_utf8(message.content, "Message::content");
  }
  if (messages.empty()) throw Error(ErrorCode::kEmptyPrompt, "there are no messages", "Session::append", "");
  std::vector<Message> all = with_answer();
  all.insert(all.end(), messages.begin(), messages.end());
  const size_t base = conversing_ ? base_ : tokens_.size();
  const std::vector<int32_t> ids = encode(all);
  require_room(base + ids.size());
  // The part that the cache already holds stays: usually everything except the new messages.
  const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(base);
  const auto same = std::mismatch(begin, tokens_.end(), ids.begin(), ids.end());
  tokens_.erase(same.first, tokens_.end());
  if (cache_->position() > static_cast<int64_t>(tokens_.size())) cache_->rewind(static_cast<int64_t>(tokens_.size()));
  tokens_.insert(tokens_.end(), same.second, ids.end());
  scored_ = false;
  conversing_ = true;
  base_ = base;
  messages_ = std::move(all);
  turns_.push_back({messages_.size(), tokens_.size()});
}

void SessionState::append_text(std::string_view text, bool allow_special) {
  const Use use(this);
  require_utf8(text, "Session::append_text");
  EncodeOptions options;
  options.allow_special = allow_special;
  options.add_special_tokens = tokens_.empty();
  add_plain(model_->tokenizer->encode(text, options));
}

void SessionState::append_tokens(const std::vector<int32_t>& tokens) {
  const Use use(this);
  for (const int32_t token : tokens) {
    if (token >= 0 && token < model_->backend->vocab_size()) continue;
    throw Error(ErrorCode::kBadArgument,
                "there is no token " + std::to_string(token) + ", expected 0 to " +
                    std::to_string(model_->backend->vocab_size() - 1),
                "Session::append_tokens", "Model::encode gives the tokens of a text.");
  }
  add_plain(tokens);
}

void SessionState::append_image(const uint8_t* rgb, int32_t width, int32_t height) {
  const Use use(this);
  if (rgb == nullptr || width < 1 || height < 1) {
    throw Error(ErrorCode::kBadArgument,
                rgb == nullptr ? "there are no pixels"
                               : "got " + std::to_string(width) + " x " + std::to_string(height) +
                                     " pixels, expected 1 x 1 or more",
                "Session::append_image", "");
  }
  throw Error(ErrorCode::kUnsupported, "this model reads text alone", model_->directory,
              "say in words what the image shows; no model that sees is built for this library yet.");
}

void SessionState::add_plain(const std::vector<int32_t>& tokens) {
  require_room(tokens_.size() + tokens.size());
  if (tokens.empty()) return;
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  scored_ = false;
  conversing_ = false;
  messages_.clear();
  turns_.clear();
}

// Runs the waiting tokens; returns whether all were run.
bool SessionState::run_waiting(bool may_cancel) {
  // After a rewind, the last token is run again for its scores.
  const int64_t count = static_cast<int64_t>(tokens_.size());
  if (!scored_ && cache_->position() == count) cache_->rewind(count - 1);
  while (cache_->position() < count) {
    if (may_cancel && cancelled_) return false;
    const int64_t length = std::min(count - cache_->position(), model_->backend->longest_call());
    cache_->append(tokens_.data() + cache_->position(), static_cast<size_t>(length));
  }
  scored_ = true;
  return !(may_cancel && cancelled_);
}

Result SessionState::generate(const GenerateOptions& options, const TextCallback& callback) {
  const Use use(this);
  if (tokens_.empty()) refuse_empty();
  cancelled_ = false;
  const std::vector<int32_t> context = tokens_;
  const int64_t waiting = std::max<int64_t>(static_cast<int64_t>(context.size()) - cache_->position(), scored_ ? 0 : 1);
  // The last token that is chosen is never in the cache.
  const int64_t room = capacity() - static_cast<int64_t>(context.size()) + 1;
  Answering answering(this);
  Result result = answer({*model_->tokenizer, model_->backend->vocab_size(), room, context, model_->stop_tokens},
                         options, callback, &answering);
  result.stats.prompt_tokens = waiting;
  return result;
}

std::vector<float> SessionState::logits() {
  const Use use(this);
  if (tokens_.empty()) refuse_empty();
  run_waiting(false);
  std::vector<float> logits(static_cast<size_t>(model_->backend->vocab_size()));
  cache_->read_logits(logits.data());
  return logits;
}

void SessionState::rewind(int64_t tokens) {
  const Use use(this);
  if (tokens < 0 || tokens > static_cast<int64_t>(tokens_.size())) {
    throw Error(ErrorCode::kBadArgument,
                "got " + std::to_string(tokens) + ", expected 0 to " + std::to_string(tokens_.size()) +
                    ", the number of tokens in the session",
                "Session::rewind", "");
  }
  if (tokens == static_cast<int64_t>(tokens_.size())) return;
  tokens_.resize(static_cast<size_t>(tokens));
  if (cache_->position() > tokens) cache_->rewind(tokens);
  scored_ = false;
  while (!turns_.empty() && turns_.back().tokens > tokens_.size()) turns_.pop_back();
  messages_.resize(turns_.empty() ? 0 : turns_.back().messages);
  if (tokens_.size() < base_) conversing_ = false;
}

std::unique_ptr<SessionState> SessionState::fork() {
  const Use use(this);
  auto copy = std::make_unique<SessionState>(model_, cache_->fork());
  copy->tokens_ = tokens_;
  copy->scored_ = scored_;
  copy->begun_ = begun_;
  copy->conversing_ = conversing_;
  copy->base_ = base_;
  copy->messages_ = messages_;
  copy->turns_ = turns_;
  return copy;
}

std::vector<int32_t> SessionState::tokens() {
  const Use use(this);
  return tokens_;
}

}  // namespace detail
}  // namespace awq2trt
