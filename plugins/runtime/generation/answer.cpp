// See answer.h.
#include "generation/answer.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>

#include "generation/sampler.h"
#include "generation/stop_strings.h"
#include "text/stream.h"
#include "text/tokenizer.h"

namespace awq2trt {

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::duration duration) { return std::chrono::duration<double, std::milli>(duration).count(); }

// The tokens that end an answer, in ascending order.
std::vector<int32_t> stop_tokens(const AnswerFrame& frame, const GenerateOptions& options) {
  std::vector<int32_t> stops = options.stop_tokens;
  for (const int32_t id : stops) {
    if (id >= 0 && id < frame.vocab_size) continue;
    throw Error(ErrorCode::kBadArgument,
                "got " + std::to_string(id) + ", expected ids from 0 to " + std::to_string(frame.vocab_size - 1),
                "GenerateOptions::stop_tokens", "");
  }
  if (!options.ignore_model_stops) stops.insert(stops.end(), frame.model_stops.begin(), frame.model_stops.end());
  std::sort(stops.begin(), stops.end());
  return stops;
}

int64_t most_tokens(const GenerateOptions& options) {
  if (options.max_tokens >= 0) return options.max_tokens;
  throw Error(ErrorCode::kBadArgument,
              "got " + std::to_string(options.max_tokens) + ", expected 0 (as many as the session holds) or more",
              "GenerateOptions::max_tokens", "");
}

class Answer {
 public:
  Answer(const AnswerFrame& frame, const GenerateOptions& options, const TextCallback& listener, Continuation* session)
      : session_(*session),
        listener_(listener),
        sampler_(options, frame.vocab_size),
        stop_tokens_(stop_tokens(frame, options)),
        stop_strings_(options.stop),
        stream_(frame.tokenizer, /*skip_special=*/true),
        max_tokens_(most_tokens(options)),
        room_(frame.room) {
    sampler_.see(frame.context.data(), frame.context.size());
  }

  Result run() {
    const Clock::time_point begin = Clock::now();
    std::optional<FinishReason> reason;
    while (!reason) reason = step();
    result_.finish_reason = finish(*reason);
    result_.stats.new_tokens = static_cast<int64_t>(result_.tokens.size());
    result_.stats.prefill_ms = milliseconds(first_ - begin);
    result_.stats.decode_ms = milliseconds(Clock::now() - first_);
    return std::move(result_);
  }

 private:
  // Handles one token; returns why the answer ends with it, if it does.
  std::optional<FinishReason> step() {
    const int32_t token = next_token();
    if (result_.tokens.empty()) first_ = Clock::now();
    if (token < 0) return FinishReason::kCancelled;
    if (std::binary_search(stop_tokens_.begin(), stop_tokens_.end(), token)) return FinishReason::kStopToken;
    session_.append(token);
    result_.tokens.push_back(token);
    const bool goes_on = give(stop_strings_.push(stream_.push(token)));
    const auto count = static_cast<int64_t>(result_.tokens.size());
    if (stop_strings_.found()) return FinishReason::kStopString;
    if (!goes_on) return FinishReason::kCallback;
    if (count == max_tokens_) return FinishReason::kMaxTokens;
    if (count == room_) return FinishReason::kFull;
    return std::nullopt;
  }

  int32_t next_token() {
    if (sampler_.takes_best() && session_.finds_best()) return session_.best();
    const float* const scores = session_.scores();
    return scores == nullptr ? -1 : sampler_.pick(scores);
  }

  // Whether to continue.
  bool give(const std::string& text) {
    if (text.empty()) return true;
    result_.text += text;
    return !listener_ || listener_(text);
  }

  // Gives what was held back; returns why the answer ended, since a stop string may be complete only now.
  FinishReason finish(FinishReason reason) {
    if (reason == FinishReason::kStopString || reason == FinishReason::kCallback ||
        reason == FinishReason::kCancelled) {
      return reason;
    }
    const std::string last = stop_strings_.push(stream_.finish());
    give(stop_strings_.found() ? last : last + stop_strings_.finish());
    return stop_strings_.found() ? FinishReason::kStopString : reason;
  }

  Continuation& session_;
  const TextCallback& listener_;
  Sampler sampler_;
  std::vector<int32_t> stop_tokens_;
  StopStrings stop_strings_;
  StreamDecoder stream_;
  int64_t max_tokens_, room_;
  Result result_;
  Clock::time_point first_;  // when the first token was chosen
};

}  // namespace

Result answer(const AnswerFrame& frame, const GenerateOptions& options, const TextCallback& listener,
              Continuation* session) {
  return Answer(frame, options, listener, session).run();
}

}  // namespace awq2trt
