// A model inside an application: loaded once, and no exception leaves the part that calls it. The application sorts
// lines into kinds given on its command line: it takes the kind whose first token has the best score, so that there is
// always an answer.
//
//   embed DIRECTORY KIND...  < lines
#include <awq2trt/awq2trt.hpp>
#include <iostream>
#include <string>
#include <vector>

namespace {

struct Kind {
  std::string name;
  int32_t first_token;
};

class Sorter {
 public:
  Sorter(const std::string& directory, const std::vector<std::string>& names)
      : model_(awq2trt::Model::load(directory)), instructed_(model_.session()) {
    std::string list;
    for (const std::string& name : names) {
      kinds_.push_back({name, model_.encode(name).at(0)});
      list += (list.empty() ? "" : ", ") + name;
    }
    instructed_.append({{"system", "Sort what the user says into one of these kinds: " + list + "."}});
    instructed_.logits();  // runs the instructions, once for all lines
  }

  std::string sort(const std::string& line) const {
    awq2trt::Session session = instructed_.fork();
    session.append({{"user", line}});
    const std::vector<float> logits = session.logits();
    const Kind* best = &kinds_.front();
    for (const Kind& kind : kinds_) best = logits[kind.first_token] > logits[best->first_token] ? &kind : best;
    return best->name;
  }

 private:
  awq2trt::Model model_;
  awq2trt::Session instructed_;
  std::vector<Kind> kinds_;
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: embed DIRECTORY KIND... < lines\n";
    return 2;
  }
  try {
    const Sorter sorter(arguments[1], std::vector<std::string>(arguments + 2, arguments + count));
    for (std::string line; std::getline(std::cin, line);) std::cout << sorter.sort(line) << "\t" << line << "\n";
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
