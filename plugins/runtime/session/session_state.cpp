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

// `more`: of a prompt whose text is not known yet.
void SessionState::require_room(size_t tokens, size_t image_tokens, bool more) const {
  if (static_cast<int64_t>(tokens) <= capacity()) return;
  const std::string limit = std::to_string(capacity()), needed = std::to_string(tokens);
  const bool built = capacity() == model_->backend->capacity();
  const std::string of_images = image_tokens == 0 ? "" : ", " + std::to_string(image_tokens) + " of them of images";
  const bool of_text = static_cast<int64_t>(tokens - image_tokens) > capacity();  // without images, too
  const std::string shorter = image_tokens == 0 || of_text ? "shorten the text" : "show fewer images";
  throw Error(ErrorCode::kTooLong,
              "the session would need " + std::string(more ? "more than " : "") + needed + " tokens" + of_images +
                  ", but it holds at most " + limit,
              "Session",
              shorter + ", rewind(), or " +
                  (!built ? "open a session of more SessionOptions::max_tokens."
                   : more ? "build the model again with a --max-seq-len of more than " + needed +
                                ", for the text needs room, too."
                          : "build the model again with --max-seq-len " + needed + " or more."));
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
    messages.push_back({"assistant", model_->sight ? model_->sight->without_markers(text) : text});
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
  // The part that the cache already holds stays: usually everything except the new messages.
  const size_t same = prompt_.same_tokens(base, prompt);
  Prompt whole = prompt_;
  whole.keep(base + same);
  whole.append(prompt, same);
  require_room(whole.size(), whole.image_tokens());
  replace_prompt(std::move(whole), base + same);
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
  if (model_->tables) model_->tables->require_images(prompt_.images.size() + waiting_.size() + 1);
  const auto count = static_cast<size_t>(model_->sight->image_tokens(image.size()));
  const size_t around = model_->sight->tokens_around(image.size(), *model_->tokenizer);
  size_t image_tokens = count, tokens = count + around;
  for (const Pieces& other : waiting_) {
    image_tokens += other->count;
    tokens += other->count + other->around;
  }
  // Before anything as large as they say is made. Tokens of an application need not have what is written around them.
  if (static_cast<int64_t>(image_tokens) > capacity()) require_room(tokens, image_tokens, true);
  const PreparedImage prepared = model_->sight->prepare(image);
  waiting_.push_back(std::make_shared<const SeenImage>(
      SeenImage{model_->backend->embedder()->see(prepared), count, prepared.grid, prepared.texts, around}));
}

void SessionState::add_plain(const Prompt& prompt) {
  require_room(prompt_.size() + prompt.size(), prompt_.image_tokens() + prompt.image_tokens());
  if (prompt.size() == 0) return;
  Prompt whole = prompt_;
  whole.append(prompt);
  replace_prompt(std::move(whole), prompt_.size());
  waiting_.clear();
  conversing_ = false;
  messages_.clear();
  shown_.clear();
  turns_.clear();
}

// The last place up to this one where a call may begin.
size_t SessionState::uncut(size_t token) const {
  return model_->tables && model_->tables->whole_rows() ? prompt_.uncut(token) : token;
}

// Another prompt with the `same` first tokens. Throws Error, kBadArgument, for one that no calls can run.
void SessionState::replace_prompt(Prompt prompt, size_t same) {
  const auto longest = static_cast<size_t>(model_->backend->longest_call());
  if (model_->tables && model_->tables->whole_rows() && prompt.longest_row() > longest) {
    throw Error(ErrorCode::kBadArgument,
                "more than " + std::to_string(longest) +
                    " image tokens stand side by side, and a call of this model's decoder takes " +
                    std::to_string(longest) + " tokens",
                "Session", "write something between images.");
  }
  // Keys of a part of a row know the tokens of it that go.
  const auto kept = static_cast<int64_t>(uncut(same));
  if (cache_->position() > kept) cache_->rewind(kept);
  prompt_ = std::move(prompt);
  placed_ = false;
  scored_ = false;
}

// Takes back what must be run again: a row of image tokens to which others were added; and, since scores are those of
// the last token that was run, the last one after a rewind.
void SessionState::take_back() {
  const auto position = static_cast<size_t>(cache_->position());
  const bool again = !scored_ && position == prompt_.size();
  const size_t begin = uncut(again ? position - 1 : position);
  if (begin < position) cache_->rewind(static_cast<int64_t>(begin));
}

// How many of the tokens that wait the next call takes.
int64_t SessionState::next_length() const {
  const auto begin = static_cast<size_t>(cache_->position());
  return static_cast<int64_t>(
      uncut(std::min(prompt_.size(), begin + static_cast<size_t>(model_->backend->longest_call()))) - begin);
}

// Tables that are equal to those of the last call stay, so that a device keeps its copy.
void SessionState::place_tables() {
  if (placed_ || !model_->tables) return;
  std::shared_ptr<const Tables> tables = model_->tables->of(prompt_);
  if (tables_ == nullptr || (tables != tables_ && *tables != *tables_)) tables_ = std::move(tables);
  placed_ = true;
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
  for (size_t i = 0; i < count && !model_->sight->attended(); ++i) {
    const float* const row = prompt_.row_of(first + i, width);
    if (row != nullptr) std::copy(row, row + width, rows_.data() + i * width);
  }
  place_tables();
  cache_->append({ids, count, rows_.data(), tables_});
}

// Runs the waiting tokens; returns whether all were run.
bool SessionState::run_waiting(bool may_cancel) {
  take_back();
  while (cache_->position() < static_cast<int64_t>(prompt_.size())) {
    if (may_cancel && cancelled_) return false;
    run_next(next_length());
  }
  scored_ = true;
  return !(may_cancel && cancelled_);
}

Result SessionState::generate(const GenerateOptions& options, const TextCallback& callback) {
  const Use use(this);
  require_prompt();
  cancelled_ = false;
  const std::vector<int32_t> context = prompt_.tokens;
  take_back();
  const int64_t waiting = static_cast<int64_t>(context.size()) - cache_->position();
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
  Prompt kept = prompt_;
  kept.keep(static_cast<size_t>(tokens));
  replace_prompt(std::move(kept), static_cast<size_t>(tokens));
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
  copy->tables_ = tables_;
  copy->placed_ = placed_;
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
