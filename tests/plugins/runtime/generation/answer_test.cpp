// The loop of an answer over a session that follows a script: where it ends and why, what the listener gets, and which
// tokens the session keeps.
#include "generation/answer.h"

#include <gtest/gtest.h>

#include <sstream>
#include <stdexcept>

#include "text/tokenizer.h"

namespace awq2trt {
namespace {

// \u00c3 and \u00a9 stand for the bytes of an e with an acute accent.
constexpr char kTokenizer[] = R"({"added_tokens": [{"id": 6, "content": "<end>", "single_word": false, "lstrip": false,
  "rstrip": false, "normalized": false, "special": true}], "pre_tokenizer": {"type": "ByteLevel",
  "add_prefix_space": false, "trim_offsets": true, "use_regex": false}, "decoder": {"type": "ByteLevel"},
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "\u00c3": 3, "\u00a9": 4, "ab": 5}, "merges": [["a", "b"]]}})";
constexpr int32_t kA = 0, kB = 1, kC = 2, kFirstByte = 3, kSecondByte = 4, kEnd = 6;
constexpr int64_t kVocabulary = 7;

class Script : public Continuation {
 public:
  explicit Script(std::vector<int32_t> tokens) : tokens_(std::move(tokens)) {}

  const float* scores() override {
    if (appended.size() == cancel_after) return nullptr;
    scores_.assign(kVocabulary, 0.0f);
    scores_[tokens_.at(appended.size())] = 9.0f;
    return scores_.data();
  }
  bool finds_best() const override { return device_chooses; }
  int32_t best() override {
    ++chosen_by_device;
    return appended.size() == cancel_after ? -1 : tokens_.at(appended.size());
  }
  void append(int32_t token) override { appended.push_back(token); }

  std::vector<int32_t> appended;
  size_t cancel_after = SIZE_MAX;
  bool device_chooses = false;
  int chosen_by_device = 0;

 private:
  std::vector<int32_t> tokens_;
  std::vector<float> scores_;
};

class AnswerTest : public testing::Test {
 protected:
  AnswerTest() {
    std::istringstream in(kTokenizer);
    tokenizer_ = Tokenizer::from_stream(in, "tokenizer.json");
  }

  Result run(Script* script) {
    return answer({*tokenizer_, kVocabulary, room, context, model_stops}, options, listener, script);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  int64_t room = 100;
  std::vector<int32_t> context{kC}, model_stops{kEnd};
  GenerateOptions options;
  std::vector<std::string> pieces;
  TextCallback listener = [this](std::string_view piece) {
    pieces.emplace_back(piece);
    return true;
  };
};

TEST_F(AnswerTest, EndsBeforeAStopToken) {
  Script script({kA, kB, kEnd});
  const Result result = run(&script);
  EXPECT_EQ(result.finish_reason, FinishReason::kStopToken);
  EXPECT_EQ(result.text, "ab");
  EXPECT_EQ(result.tokens, (std::vector<int32_t>{kA, kB}));
  EXPECT_EQ(script.appended, result.tokens);
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(result.stats.new_tokens, 2);
}

TEST_F(AnswerTest, EndsBeforeAStopTokenOfTheOptions) {
  options.stop_tokens = {kB};
  Script script({kA, kB});
  EXPECT_EQ(run(&script).text, "a");
}

TEST_F(AnswerTest, GoesOnWhereTheModelsStopsDoNotCount) {
  options.ignore_model_stops = true;
  options.max_tokens = 3;
  Script script({kA, kEnd, kB});
  const Result result = run(&script);
  EXPECT_EQ(result.finish_reason, FinishReason::kMaxTokens);
  EXPECT_EQ(result.text, "ab");  // the special token has no text
  EXPECT_EQ(result.tokens.size(), 3u);
}

TEST_F(AnswerTest, EndsBeforeAStopStringOverTokensAndCharacters) {
  options.stop = {"b\u00e9"};
  Script script({kA, kB, kFirstByte, kSecondByte});
  const Result result = run(&script);
  EXPECT_EQ(result.finish_reason, FinishReason::kStopString);
  EXPECT_EQ(result.text, "a");
  EXPECT_EQ(pieces, (std::vector<std::string>{"a"}));
  EXPECT_EQ(result.tokens.size(), 4u);
}

TEST_F(AnswerTest, GivesWholeCharacters) {
  options.max_tokens = 4;
  Script script({kFirstByte, kSecondByte, kA, kFirstByte});
  const Result result = run(&script);
  EXPECT_EQ(pieces, (std::vector<std::string>{"\u00e9", "a", "\ufffd"}));
  EXPECT_EQ(result.text, "\u00e9a\ufffd");
}

TEST_F(AnswerTest, GivesWhatWasHeldBackForAStopString) {
  options.stop = {"bb"};
  Script script({kA, kB, kEnd});
  EXPECT_EQ(run(&script).text, "ab");
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "b"}));
}

TEST_F(AnswerTest, FindsAStopStringThatIsWholeOnlyAtTheEnd) {
  options.stop = {"\ufffd"};
  options.max_tokens = 2;
  Script script({kA, kFirstByte});
  const Result result = run(&script);
  EXPECT_EQ(result.finish_reason, FinishReason::kStopString);
  EXPECT_EQ(result.text, "a");
}

TEST_F(AnswerTest, EndsWhereTheSessionIsFull) {
  room = 2;
  Script script({kA, kB, kC});
  EXPECT_EQ(run(&script).finish_reason, FinishReason::kFull);
  EXPECT_EQ(script.appended.size(), 2u);
}

TEST_F(AnswerTest, EndsWhenTheListenerHasEnough) {
  options.stop = {"cc"};
  listener = [this](std::string_view piece) {
    pieces.emplace_back(piece);
    return pieces.size() < 2;
  };
  Script script({kA, kB, kC});
  const Result result = run(&script);
  EXPECT_EQ(result.finish_reason, FinishReason::kCallback);
  EXPECT_EQ(result.tokens, (std::vector<int32_t>{kA, kB}));
  EXPECT_EQ(pieces.size(), 2u);
}

TEST_F(AnswerTest, EndsWhenItIsCancelled) {
  options.stop = {"bb"};
  Script script({kA, kB, kC});
  script.cancel_after = 2;
  const Result result = run(&script);
  EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(result.tokens, (std::vector<int32_t>{kA, kB}));
  EXPECT_EQ(pieces, (std::vector<std::string>{"a"}));  // the b was held back, and the listener is gone
}

TEST_F(AnswerTest, CancelledBeforeTheFirstTokenIsEmpty) {
  Script script({kA});
  script.cancel_after = 0;
  const Result result = run(&script);
  EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
  EXPECT_TRUE(result.tokens.empty());
}

TEST_F(AnswerTest, KeepsTheTokensBeforeAListenersException) {
  listener = [](std::string_view piece) -> bool {
    if (piece == "b") throw std::runtime_error("enough");
    return true;
  };
  Script script({kA, kB, kC});
  EXPECT_THROW(run(&script), std::runtime_error);
  EXPECT_EQ(script.appended, (std::vector<int32_t>{kA, kB}));
}

TEST_F(AnswerTest, NeedsNoListener) {
  listener = nullptr;
  Script script({kA, kEnd});
  EXPECT_EQ(run(&script).text, "a");
}

TEST_F(AnswerTest, ADeviceChoosesWhereItCan) {
  Script script({kA, kB, kEnd});
  script.device_chooses = true;
  EXPECT_EQ(run(&script).text, "ab");
  EXPECT_EQ(script.chosen_by_device, 3);
  Script sampled({kA, kEnd});
  sampled.device_chooses = true;
  options.repetition_penalty = 1.1f;
  EXPECT_EQ(run(&sampled).text, "a");
  EXPECT_EQ(sampled.chosen_by_device, 0);
}

TEST_F(AnswerTest, ThePenaltyKnowsTheContext) {
  context = {kA};
  options.repetition_penalty = 1e6f;
  options.max_tokens = 1;
  Script script({kA});
  EXPECT_EQ(run(&script).tokens, (std::vector<int32_t>{kA}));  // a positive score stays above 0
  context = {kB};
  options.logit_bias = {{kA, -9.0f}, {kB, 1.0f}};
  Script other({kA});
  EXPECT_EQ(run(&other).tokens, (std::vector<int32_t>{kB}));
}

TEST_F(AnswerTest, RefusesOptionsThatMakeNoSense) {
  const auto refused = [&](const char* where) {
    Script script({kA});
    try {
      run(&script);
      ADD_FAILURE() << where;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBadArgument);
      EXPECT_NE(std::string(error.what()).find(where), std::string::npos) << error.what();
    }
    options = GenerateOptions();
  };
  options.max_tokens = -1;
  refused("max_tokens: got -1");
  options.stop_tokens = {7};
  refused("stop_tokens: got 7, expected ids from 0 to 6");
  options.stop_tokens = {-1};
  refused("stop_tokens");
  options.stop = {""};
  refused("stop: an empty stop string");
  options.temperature = -1.0f;
  refused("temperature");
}

}  // namespace
}  // namespace awq2trt
