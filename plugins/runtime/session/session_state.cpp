// See session_state.h.
#include "session/session_state.h"

#include <algorithm>

#include "generation/answer.h"
#include "text/unicode.h"

namespace awq2trt {
namespace detail {
namespace {

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
  bool finds_best() const override { return session_.cache_->finds_best(); }
  int32_t best() override { return session_.run_waiting(true) ? session_.cache_->best() : -1; }
  void append(int32_t token) override {
    // The last token of a full session is given although the cache has no place for it.
    if (static_cast<int64_t>(session_.prompt_.size()) >= session_.capacity()) return;
    session_.prompt_.tokens.push_back(token);
    session_.scored_ = false;
  }

 private:
  SessionState& session_;
  std::vector<float> logits_;
};

SessionState::SessionState(std::shared_ptr<const ModelState> model, std::unique_ptr<Cache> cache)
    : model_(std::move(model)), cache_(std::move(cache)), begun_(std::time(nullptr)) {}

void SessionState::require_room(size_t tokens, size_t image_tokens) const {
  if (static_cast<int64_t>(tokens) <= capacity()) return;
  const std::string limit = std::to_string(capacity());
  const bool built = capacity() == model_->backend->capacity();
  const std::string of_images = image_tokens == 0 ? "" : ", " + std::to_string(image_tokens) + " of them of images";
  const std::string shorter = image_tokens == 0 ? "shorten the text" : "show fewer images";
  throw Error(
      ErrorCode::kTooLong,
      "the session would need " + std::to_string(tokens) + " tokens" + of_images + ", but it holds at most " + limit,
      "Session",
      shorter + (built
                     ? ", rewind(), or build the model again with --max-seq-len " + std::to_string(tokens) + " or more."
                     : ", rewind(), or open a session of more SessionOptions::max_tokens."));
}

// Refuses to continue from nothing, and without images that were given.
void SessionState::require_prompt() const {
  if (!waiting_.empty()) {
    throw Error(ErrorCode::kBadArgument,
                "images that wait for a place in messages or text: " + std::to_string(waiting_.size()), "Session",
                std::string("append messages, or text with ") + kMarker +
                    " where an image stands; rewind() forgets images that wait.");
  }
  if (prompt_.size() == 0) {
    throw Error(ErrorCode::kEmptyPrompt, "there is nothing to continue", "Session", "append messages or text first.");
  }
}

// The messages so far, including the last answer.
std::vector<Message> SessionState::with_answer() const {
  std::vector<Message> messages = messages_;
  if (!turns_.empty() && prompt_.size() > turns_.back().tokens) {
    const std::vector<int32_t> answer(prompt_.tokens.begin() + static_cast<std::ptrdiff_t>(turns_.back().tokens),
                                      prompt_.tokens.end());
    const std::string text = model_->tokenizer->decode(answer);
    messages.push_back({"assistant", model_->sight ? without_markers(text) : text});
  }
  return messages;
}

Prompt SessionState::encode(const std::vector<Message>& messages, const std::vector<Pieces>& images) const {
  if (model_->chat_template == nullptr) {
    throw Error(ErrorCode::kNoTemplate, "this model has no chat template", model_->directory,
                "continue plain text with append_text().");
  }
  const Sight* const sight = model_->sight.get();
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Message& message : messages) {
    list.push_back(sight != nullptr ? sight->in_template(message)
                                    : nlohmann::ordered_json{{"role", message.role}, {"content", message.content}});
  }
  RenderOptions options;
  options.now = begun_;
  const std::vector<RenderedPart> rendered = model_->chat_template->render(list, model_->tokenizer.get(), options);
  std::vector<TextPart> parts;
  for (const RenderedPart& part : rendered) parts.push_back({part.text, part.trusted});
  if (sight == nullptr) return {model_->tokenizer->encode(parts, false), {}};
  return sight->place(parts, false, *model_->tokenizer, images);
}

void SessionState::append(const std::vector<Message>& messages) {
  const Use use(this);
  for (const Message& message : messages) {
    require_utf8(message.role, "Message::role");
    require_utf8(message.content, "Message::content");
  }
  if (messages.empty()) throw Error(ErrorCode::kEmptyPrompt, "there are no messages", "Session::append", "");
  std::vector<Message> all = with_answer();
  const std::vector<Message> added = model_->sight ? model_->sight->with_markers(messages, waiting_.size()) : messages;
  all.insert(all.end(), added.begin(), added.end());
  std::vector<Pieces> images = shown_;
  images.insert(images.end(), waiting_.begin(), waiting_.end());
  const size_t base = conversing_ ? base_ : prompt_.size();
  const Prompt prompt = encode(all, images);
  require_room(base + prompt.size(), prompt.image_tokens());
  // The part that the cache already holds stays: usually everything except the new messages.
  const size_t same = prompt_.same_tokens(base, prompt);
  prompt_.keep(base + same);
  if (cache_->position() > static_cast<int64_t>(prompt_.size())) cache_->rewind(static_cast<int64_t>(prompt_.size()));
  prompt_.append(prompt, same);
  rotary_.reset();
  scored_ = false;
  conversing_ = true;
  base_ = base;
  messages_ = std::move(all);
  shown_ = std::move(images);
  waiting_.clear();
  turns_.push_back({messages_.size(), shown_.size(), prompt_.size()});
}

void SessionState::append_text(std::string_view text, bool allow_special) {
  const Use use(this);
  require_utf8(text, "Session::append_text");
  const bool first = prompt_.size() == 0;
  if (model_->sight) {
    add_plain(model_->sight->place({{text, allow_special}}, first, *model_->tokenizer, waiting_));
    return;
  }
  EncodeOptions options;
  options.allow_special = allow_special;
  options.add_special_tokens = first;
  add_plain({model_->tokenizer->encode(text, options), {}});
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
  add_plain(model_->sight ? model_->sight->place(tokens, waiting_) : Prompt{tokens, {}});
}

void SessionState::append_image(const uint8_t* rgb, int32_t width, int32_t height) {
  const Use use(this);
  const ImageView image{rgb, width, height};
  check_image(image, "Session::append_image");
  if (model_->sight == nullptr) {
    throw Error(ErrorCode::kUnsupported, "this model does not see: it is a model of text", model_->directory,
                "say in words what the image shows, or load a model that sees.");
  }
  const auto count = static_cast<size_t>(model_->sight->pieces(image.size()));
  size_t image_tokens = count;
  for (const Pieces& other : waiting_) image_tokens += other->count;
  require_room(image_tokens, image_tokens);  // before anything as large as they say is made
  const PreparedImage prepared = model_->sight->prepare(image);
  waiting_.push_back(std::make_shared<const SeenImage>(
      SeenImage{model_->backend->embedder()->see(prepared), count, prepared.grid, prepared.texts}));
}

void SessionState::add_plain(const Prompt& prompt) {
  require_room(prompt_.size() + prompt.size(), prompt_.image_tokens() + prompt.image_tokens());
  if (prompt.size() == 0) return;
  prompt_.append(prompt);
  rotary_.reset();
  waiting_.clear();
  scored_ = false;
  conversing_ = false;
  messages_.clear();
  shown_.clear();
  turns_.clear();
}

// Runs the next tokens that wait.
void SessionState::run_next(int64_t length) {
  const auto first = static_cast<size_t>(cache_->position()), count = static_cast<size_t>(length);
  const int32_t* const ids = prompt_.tokens.data() + first;
  const Embedder* const embedder = model_->backend->embedder();
  if (embedder == nullptr) {
    cache_->append({ids, count});
    return;
  }
  const auto width = static_cast<size_t>(embedder->width());
  rows_.resize(count * width);
  embedder->embed(ids, count, rows_.data());
  for (size_t i = 0; i < count; ++i) {
    const float* const row = prompt_.row_of(first + i, width);
    if (row != nullptr) std::copy(row, row + width, rows_.data() + i * width);
  }
  if (model_->rotary && rotary_ == nullptr) rotary_ = model_->rotary->of(prompt_);
  cache_->append({ids, count, rows_.data(), rotary_});
}

// Runs the waiting tokens; returns whether all were run.
bool SessionState::run_waiting(bool may_cancel) {
  // After a rewind, the last token is run again for its scores.
  const int64_t count = static_cast<int64_t>(prompt_.size());
  if (!scored_ && cache_->position() == count) cache_->rewind(count - 1);
  while (cache_->position() < count) {
    if (may_cancel && cancelled_) return false;
    run_next(std::min(count - cache_->position(), model_->backend->longest_call()));
  }
  scored_ = true;
  return !(may_cancel && cancelled_);
}

Result SessionState::generate(const GenerateOptions& options, const TextCallback& callback) {
  const Use use(this);
  require_prompt();
  cancelled_ = false;
  const std::vector<int32_t> context = prompt_.tokens;
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
  require_prompt();
  run_waiting(false);
  std::vector<float> logits(static_cast<size_t>(model_->backend->vocab_size()));
  cache_->read_logits(logits.data());
  return logits;
}

void SessionState::rewind(int64_t tokens) {
  const Use use(this);
  if (tokens < 0 || tokens > static_cast<int64_t>(prompt_.size())) {
    throw Error(ErrorCode::kBadArgument,
                "got " + std::to_string(tokens) + ", expected 0 to " + std::to_string(prompt_.size()) +
                    ", the number of tokens in the session",
                "Session::rewind", "");
  }
  waiting_.clear();
  if (tokens == static_cast<int64_t>(prompt_.size())) return;
  prompt_.keep(static_cast<size_t>(tokens));
  rotary_.reset();
  if (cache_->position() > tokens) cache_->rewind(tokens);
  scored_ = false;
  while (!turns_.empty() && turns_.back().tokens > prompt_.size()) turns_.pop_back();
  messages_.resize(turns_.empty() ? 0 : turns_.back().messages);
  shown_.resize(turns_.empty() ? 0 : turns_.back().images);
  if (prompt_.size() < base_) conversing_ = false;
}

std::unique_ptr<SessionState> SessionState::fork() {
  const Use use(this);
  auto copy = std::make_unique<SessionState>(model_, cache_->fork());
  copy->prompt_ = prompt_;
  copy->waiting_ = waiting_;
  copy->scored_ = scored_;
  copy->begun_ = begun_;
  copy->conversing_ = conversing_;
  copy->base_ = base_;
  copy->messages_ = messages_;
  copy->shown_ = shown_;
  copy->turns_ = turns_;
  return copy;
}

std::vector<int32_t> SessionState::tokens() {
  const Use use(this);
  return prompt_.tokens;
}

}  // namespace detail
}  // namespace awq2trt
