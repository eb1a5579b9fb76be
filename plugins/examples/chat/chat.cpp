// A chat in a terminal. Answers stream; Ctrl-C stops the current answer or, at the prompt, the program.
//
//   chat DIRECTORY            what `awq2trt build --target cpu` (or cuda) wrote, or a kit with its engine
//   chat DIRECTORY --check    only compares the model's golden outputs
#include <awq2trt/awq2trt.hpp>
#include <csignal>
#include <iostream>
#include <string>

namespace {

awq2trt::Session* answering = nullptr;

void stop_answer(int) { answering->cancel(); }

void chat(const awq2trt::Model& model) {
  awq2trt::Session session = model.session();
  answering = &session;
  awq2trt::GenerateOptions options;
  options.temperature = 0.7f;
  options.top_p = 0.95f;
  std::string line;
  while (std::cout << "\n> " << std::flush && std::getline(std::cin, line)) {
    if (line.empty()) continue;
    session.append({{"user", line}});
    std::signal(SIGINT, stop_answer);
    const awq2trt::Result result = session.generate(options, [](std::string_view text) {
      std::cout << text << std::flush;
      return true;
    });
    std::signal(SIGINT, SIG_DFL);
    if (result.finish_reason == awq2trt::FinishReason::kCancelled) std::cout << " [stopped]";
    if (result.finish_reason == awq2trt::FinishReason::kFull) {
      std::cout << " [the conversation is full; a new one begins]";
      session.rewind(0);
    }
    std::cout << "\n";
  }
}

}  // namespace

int main(int count, char** arguments) {
  const bool check = count == 3 && std::string(arguments[2]) == "--check";
  if (count != 2 && !check) {
    std::cerr << "usage: chat DIRECTORY [--check]\n";
    return 2;
  }
  try {
    const awq2trt::Model model = awq2trt::Model::load(arguments[1]);
    std::cout << model.title() << "\n";
    if (!check) return chat(model), 0;
    const awq2trt::GoldenCheck golden = model.check();
    std::cout << "golden outputs: off by " << golden.worst_error << ", allowed are " << golden.allowed_error << "\n";
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
