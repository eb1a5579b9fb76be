// An answer, token by token. In: a session that runs the model, options, and a listener; out: text as it becomes
// certain, and why the answer ended.
//
// Reasons are checked in this order. Before a token is chosen: kCancelled. After it: kStopToken, which is not part of
// the answer; then, once its text is given, kStopString, kCallback, kMaxTokens, kFull. Text held back because a stop
// string might have begun is given at the end, unless the listener is gone (kCallback, kCancelled).
#pragma once

#include <cstdint>
#include <vector>

#include "awq2trt/awq2trt.hpp"

namespace awq2trt {

class Tokenizer;

// The session as an answer sees it: tokens that were run, and tokens that wait.
class Continuation {
 public:
  virtual ~Continuation() = default;
  // Runs the waiting tokens; returns the scores of the next token, [vocab_size], valid until the next call. Null if it
  // was cancelled, before or while it ran.
  virtual const float* scores() = 0;
  // Whether the device can choose the token of the best score without copying the scores out. Then best() returns it,
  // the first of equal ones; -1 if it was cancelled.
  virtual bool finds_best() const { return false; }
  virtual int32_t best() { return -1; }
  // Appends a token of the answer, which waits for the next call.
  virtual void append(int32_t token) = 0;
};

// What the session and its model prescribe for an answer.
struct AnswerFrame {
  const Tokenizer& tokenizer;
  int64_t vocab_size;
  int64_t room;                             // most tokens of the answer, at least 1
  const std::vector<int32_t>& context;      // tokens before the answer
  const std::vector<int32_t>& model_stops;  // the model's own stop tokens
};

// Throws Error, and anything that the listener throws; the session then has the tokens that were appended so far.
// Leaves stats.prompt_tokens to the session.
Result answer(const AnswerFrame& frame, const GenerateOptions& options, const TextCallback& listener,
              Continuation* session);

}  // namespace awq2trt
