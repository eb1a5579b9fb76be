// A model inside an application: loaded once, asked from a thread of its own, with a time limit, and no exception that
// leaves the part that asks. Here the application sorts lines into kinds that it names.
//
//   embed DIRECTORY KIND...  < lines
#include <awq2trt/awq2trt.hpp>
#include <chrono>
#include <future>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

namespace {

class Sorter {
 public:
  Sorter(const std::string& directory, const std::vector<std::string>& kinds)
      : model_(awq2trt::Model::load(directory)), instructed_(model_.session()) {
    std::string list;
    for (const std::string& kind : kinds) list += (list.empty() ? "" : ", ") + kind;
    instructed_.append({{"system", "Answer with one of these words alone: " + list + "."}});
    instructed_.logits();  // runs the instructions, once for all lines
  }

  // The answer; none if it takes too long.
  std::optional<std::string> sort(const std::string& line, std::chrono::milliseconds limit) const {
    awq2trt::Session session = instructed_.fork();
    session.append({{"user", line}});
    awq2trt::GenerateOptions options;
    options.max_tokens = 16;
    options.stop = {"\n"};
    auto answer = std::async(std::launch::async, [&] { return session.generate(options); });
    if (answer.wait_for(limit) == std::future_status::timeout) session.cancel();
    const awq2trt::Result result = answer.get();
    if (result.finish_reason == awq2trt::FinishReason::kCancelled) return std::nullopt;
    return result.text;
  }

 private:
  awq2trt::Model model_;
  awq2trt::Session instructed_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: embed DIRECTORY KIND... < lines\n";
    return 2;
  }
  try {
    Sorter sorter(arguments[1], std::vector<std::string>(arguments + 2, arguments + count));
    for (std::string line; std::getline(std::cin, line);) {
      std::cout << sorter.sort(line, std::chrono::seconds(30)).value_or("(no answer in time)") << "\t" << line << "\n";
    }
  } catch (const awq2trt::Error& error) {
    std::cerr << "error " << static_cast<int>(error.code()) << ": " << error.what() << "\n";
    return 1;
  }
}
