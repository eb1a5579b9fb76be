// One tokenizer and one template, used by several threads at once; meant to run under ThreadSanitizer.
#include <gtest/gtest.h>

#include <sstream>
#include <thread>

#include "text/chat_template.h"
#include "text/stream.h"
#include "text/tokenizer.h"

namespace awq2trt {
namespace {

constexpr int kThreads = 4, kRounds = 50;

constexpr char kTokenizer[] = R"({"added_tokens": [{"id": 6, "content": "<end>", "single_word": false, "lstrip": false,
  "rstrip": false, "normalized": false, "special": true}], "normalizer": {"type": "NFC"}, "pre_tokenizer":
  {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}, "decoder":
  {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "\u0120": 5},
  "merges": [["a", "b"], ["ab", "c"]]}})";

void in_threads(const std::function<void(int thread)>& work) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
}

TEST(Threads, ShareATokenizer) {
  std::istringstream in(kTokenizer);
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::from_stream(in, "tokenizer.json");
  const std::string text = "abc ab a cab abcab<end> ";
  const std::vector<int32_t> expected = tokenizer->encode(text);
  in_threads([&](int) {
    StreamDecoder stream(*tokenizer, true);
    for (int round = 0; round < kRounds; ++round) {
      EXPECT_EQ(tokenizer->encode(text), expected);
      std::string decoded;
      for (const int32_t id : expected) decoded += stream.push(id);
      decoded += stream.finish();
      EXPECT_EQ(decoded, tokenizer->decode(expected));
    }
  });
}

TEST(Threads, ShareATemplate) {
  const ChatTemplate chat_template("{% for m in messages %}[{{ m.role | upper }}]{{ m.content }}{% endfor %}>",
                                   nlohmann::ordered_json::object(), "template");
  in_threads([&](int thread) {
    const std::string name = std::to_string(thread);
    for (int round = 0; round < kRounds; ++round) {
      std::string text;
      const auto messages = read_messages(R"([{"role": "user", "content": ")" + name + R"("}])");
      for (const RenderedPart& part : chat_template.render(messages, nullptr, {})) text += part.text;
      EXPECT_EQ(text, "[USER]" + name + ">");
    }
  });
}

}  // namespace
}  // namespace awq2trt
