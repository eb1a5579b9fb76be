// Time of a token, as AWQ's paper measures it (arXiv:2306.00978, section 5.4): batch 1, a prompt of 4 tokens, 200
// greedily chosen tokens, and the median of their latencies. `awq2trt bench` does the same in Python.
//
//   bench DIRECTORY
#include <algorithm>
#include <awq2trt/awq2trt.hpp>
#include <chrono>
#include <cstdio>
#include <vector>

namespace {

constexpr int kPrompt = 4, kTokens = 200, kWarmUp = 8;

// Latencies in ms: of the first token, with the prompt, and of each that follows.
std::vector<double> latencies(awq2trt::Session* session, int tokens) {
  session->rewind(0);
  session->append_tokens(std::vector<int32_t>(kPrompt, 1));
  awq2trt::GenerateOptions options;
  options.max_tokens = 1;
  options.ignore_model_stops = true;
  std::vector<double> all;
  for (int i = 0; i < tokens; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    session->generate(options);
    all.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  return all;
}

void bench(const char* directory) {
  const auto begin = std::chrono::steady_clock::now();
  const awq2trt::Model model = awq2trt::Model::load(directory);
  awq2trt::Session session = model.session();
  latencies(&session, 1);
  const std::chrono::duration<double> start = std::chrono::steady_clock::now() - begin;
  latencies(&session, kWarmUp);
  std::vector<double> all = latencies(&session, kTokens + 1);
  std::sort(all.begin() + 1, all.end());
  const double median = (all[kTokens / 2] + all[kTokens / 2 + 1]) / 2;
  std::printf(
      "%s\nload and first token  %.2f s\nfirst token           %.3f ms\ntoken, median         %.3f ms, %.1f a second\n",
      model.title().c_str(), start.count(), all[0], median, 1e3 / median);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: bench DIRECTORY\n");
    return 2;
  }
  try {
    bench(arguments[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
