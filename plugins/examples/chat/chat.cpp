// A chat in a terminal. Answers stream; Ctrl-C stops the answer at hand, or, at the prompt, the program.
//
//   chat DIRECTORY        what `awq2trt build --target cpu` (or cuda) wrote
#include <awq2trt/awq2trt.hpp>
#include <csignal>
#include <iostream>
#include <string>

namespace {

awq2trt::Session* answering = nullptr;

void stop_answer(int) { answering->cancel(); }

void chat(const std::string& directory) {
  const awq2trt::Model model = awq2trt::Model::load(directory);
  awq2trt::Session session = model.session();
  answering = &session;
  std::cout << model.title() << "\n";
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
  if (count != 2) {
    std::cerr << "usage: chat DIRECTORY\n";
    return 2;
  }
  try {
    chat(arguments[1]);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
