// Answers many prompts, one per line, with several sessions at once. Answers come in the order of the prompts and are
// the same for any number of sessions: each prompt has its own seed.
//
//   batch DIRECTORY SESSIONS < prompts
#include <algorithm>
#include <atomic>
#include <awq2trt/awq2trt.hpp>
#include <cstdlib>
#include <future>
#include <iostream>
#include <string>
#include <vector>

namespace {

std::string answer(awq2trt::Session* session, const std::string& prompt, uint64_t seed) {
  session->rewind(0);
  session->append({{"user", prompt}});
  awq2trt::GenerateOptions options;
  options.temperature = 0.7f;
  options.max_tokens = 100;
  options.seed = seed;
  std::string text = session->generate(options).text;
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

void answer_all(const std::string& directory, int sessions) {
  std::vector<std::string> prompts;
  for (std::string line; std::getline(std::cin, line);) prompts.push_back(line);
  awq2trt::LoadOptions options;
  options.threads = 1;  // of each call into the model: the sessions use the cores
  const awq2trt::Model model = awq2trt::Model::load(directory, options);
  std::vector<std::string> answers(prompts.size());
  std::atomic<size_t> next{0};
  std::vector<std::future<void>> workers;
  for (int worker = 0; worker < sessions; ++worker) {
    workers.push_back(std::async(std::launch::async, [&] {
      awq2trt::Session session = model.session();
      for (size_t i = next++; i < prompts.size(); i = next++) answers[i] = answer(&session, prompts[i], i);
    }));
  }
  for (std::future<void>& worker : workers) worker.get();  // throws what a worker threw
  for (const std::string& text : answers) std::cout << text << "\n";
}

}  // namespace

int main(int count, char** arguments) {
  const int sessions = count == 3 ? std::atoi(arguments[2]) : 0;
  if (sessions < 1) {
    std::cerr << "usage: batch DIRECTORY SESSIONS < prompts\n";
    return 2;
  }
  try {
    answer_all(arguments[1], sessions);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
