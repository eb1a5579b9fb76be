// The sampler's golden tokens, and what concerns C++ alone; test_sampler.py compares it with Python's.
#include "generation/sampler.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

namespace awq2trt {
namespace {

TEST(Philox, GivesNumPysWords) {
  Philox random(2026);
  for (const uint64_t word : {0x6c0a6e9a616bb037u, 0x57adeab265c7cc70u, 0x1c9ffa388fc0c4c6u, 0xf4ca5098a1139440u,
                              0x8d3e174d795319a5u, 0xb43b6fe6944172d8u}) {
    EXPECT_EQ(random.next(), word);
  }
}

TEST(Sampler, ASeedMeansTheseTokensForEver) {
  GenerateOptions options;
  options.temperature = 0.8f;
  options.top_k = 40;
  options.top_p = 0.95f;
  options.min_p = 0.01f;
  options.repetition_penalty = 1.1f;
  options.seed = 2026;
  Sampler sampler(options, 1000);
  std::vector<int32_t> tokens;
  for (int row = 0; row < 12; ++row) {
    std::vector<float> logits;
    for (int id = 0; id < 1000; ++id) logits.push_back(static_cast<float>(id * 7919 * (row + 3) % 1009) / 64.0f);
    tokens.push_back(sampler.pick(logits.data()));
  }
  // As in tests/runtime/test_sampling.py.
  EXPECT_EQ(tokens, (std::vector<int32_t>{321, 399, 124, 909, 586, 765, 96, 337, 521, 316, 417, 106}));
}

TEST(Sampler, WithoutASeedGivesOtherTokens) {
  GenerateOptions options;
  options.temperature = 1.0f;
  const std::vector<float> logits(1 << 20, 0.0f);
  std::set<int32_t> tokens;
  for (int i = 0; i < 4; ++i) tokens.insert(Sampler(options, 1 << 20).pick(logits.data()));
  EXPECT_GT(tokens.size(), 1u);
}

TEST(Sampler, TakesAVocabularyOfAMillion) {
  GenerateOptions options;
  options.temperature = 1.0f;
  options.top_p = 0.999f;
  options.seed = 1;
  const int32_t size = 1 << 20;
  std::vector<float> logits(size);
  std::iota(logits.begin(), logits.end(), 0.0f);  // the best few weigh something
  Sampler sampler(options, size);
  for (int i = 0; i < 10; ++i) EXPECT_GT(sampler.pick(logits.data()), size - 10);
  const std::vector<float> flat(size, -3.0f);
  Sampler even(options, size);
  double sum = 0;
  for (int i = 0; i < 40; ++i) sum += even.pick(flat.data());
  EXPECT_NEAR(sum / 40 / size, 0.5, 0.2);  // four standard deviations
}

TEST(Sampler, BiasesOfOneTokenAddUp) {
  GenerateOptions options;
  options.logit_bias = {{2, 1.0f}, {2, 1.0f}};
  const std::vector<float> logits = {1.5f, 0.0f, 0.0f};
  EXPECT_EQ(Sampler(options, 3).pick(logits.data()), 2);
}

}  // namespace
}  // namespace awq2trt
