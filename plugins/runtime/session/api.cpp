// The classes of awq2trt.hpp, over the states behind them.
#include <utility>

#include "awq2trt/awq2trt.hpp"
#include "session/golden.h"
#include "session/model_state.h"
#include "session/session_state.h"

namespace awq2trt {

Model::Model(std::shared_ptr<const detail::ModelState> state) : state_(std::move(state)) {}

Model Model::load(const std::string& directory, const LoadOptions& options) {
  return Model(detail::load_model(directory, options));
}

Session Model::session(const SessionOptions& options) const {
  const int64_t built = capacity();
  if (options.max_tokens < 0 || options.max_tokens > built) {
    throw Error(options.max_tokens < 0 ? ErrorCode::kBadArgument : ErrorCode::kTooLong,
                "got " + std::to_string(options.max_tokens) + ", expected 1 to " + std::to_string(built) +
                    ", or 0 for as many as possible",
                "SessionOptions::max_tokens", "build the model again with --max-seq-len for more.");
  }
  const int64_t capacity = options.max_tokens == 0 ? built : options.max_tokens;
  return Session(std::make_unique<detail::SessionState>(state_, state_->backend->new_cache(capacity)));
}

std::vector<int32_t> Model::encode(std::string_view text, bool allow_special) const {
  EncodeOptions options;
  options.allow_special = allow_special;
  return state_->tokenizer->encode(text, options);
}

std::string Model::decode(const std::vector<int32_t>& tokens) const { return state_->tokenizer->decode(tokens); }
GoldenCheck Model::check() const {
  return check_golden(state_->directory, *state_->backend, state_->sight ? &state_->sight->contract() : nullptr,
                      state_->tables.get());
}
int64_t Model::capacity() const { return state_->backend->capacity(); }
int64_t Model::vocab_size() const { return state_->backend->vocab_size(); }
int64_t Model::tokens_per_image() const { return state_->sight ? state_->sight->tokens_per_image() : 0; }
const std::string& Model::title() const { return state_->backend->title(); }

Session::Session(std::unique_ptr<detail::SessionState> state) : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

void Session::append(const std::vector<Message>& messages) { state_->append(messages); }
void Session::append_text(std::string_view text, bool allow_special) { state_->append_text(text, allow_special); }
void Session::append_tokens(const std::vector<int32_t>& tokens) { state_->append_tokens(tokens); }
void Session::append_image(const uint8_t* rgb, int32_t width, int32_t height) {
  state_->append_image(rgb, width, height);
}
Result Session::generate(const GenerateOptions& options, const TextCallback& callback) {
  return state_->generate(options, callback);
}
std::vector<float> Session::logits() { return state_->logits(); }
void Session::rewind(int64_t tokens) { state_->rewind(tokens); }
Session Session::fork() const { return Session(state_->fork()); }
void Session::cancel() noexcept { state_->cancel(); }
std::vector<int32_t> Session::tokens() const { return state_->tokens(); }
int64_t Session::capacity() const { return state_->capacity(); }

}  // namespace awq2trt
