// An answer, token by token. In: a session that runs the model, options, and who listens; out: text while it becomes
// certain, and why it ended.
//
// Reasons are asked for in this order. Before a token is chosen: kCancelled. Behind it: kStopToken, which is not part
// of the answer; then its text is given, and kStopString, kCallback, kMaxTokens, kFull. What was held back, because a
// stop string might have begun, is given at the end, unless the listener is gone (kCallback, kCancelled).
#pragma once

#include <cstdint>
#include <vector>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

class Tokenizer;

// The session as an answer sees it: tokens that were run, and some that wait.
class Continuation {
 public:
  virtual ~Continuation() = default;
  // Runs the tokens that wait; scores of what follows, [vocab_size], until the next call. Null if it was cancelled,
  // before or while it ran.
  virtual const float* scores() = 0;
  // Whether the device can choose the token of the best score, without giving the scores away: then best() is asked for
  // it, of equal ones the first; -1 if it was cancelled.
  virtual bool finds_best() const { return false; }
  virtual int32_t best() { return -1; }
  // A token of the answer, which waits for the next call.
  virtual void append(int32_t token) = 0;
};

// What the session and its model say of an answer.
struct AnswerFrame {
  const Tokenizer& tokenizer;
  int64_t vocab_size;
  int64_t room;                             // most tokens of the answer, at least 1
  const std::vector<int32_t>& context;      // tokens before the answer
  const std::vector<int32_t>& model_stops;  // the model's own stop tokens
};

// Throws Error, and what the listener throws; the session then has the tokens that were appended so far. Leaves
// stats.prompt_tokens to the session.
Result answer(const AnswerFrame& frame, const GenerateOptions& options, const TextCallback& listener,
              Continuation* session);

}  // namespace awq2trt
