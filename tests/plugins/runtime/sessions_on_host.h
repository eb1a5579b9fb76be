// Sessions with images on a backend with the host in the place of the GPU. In: a model, and commands, one per line; `S`
// is the number of a session:
//   open S | image S FILE WIDTH HEIGHT (raw RGB) | append S TOKEN... | answer S COUNT | rewind S COUNT | fork S NEW
//   threads S COUNT TOKENS (forks that answer at the same time) | check 0 (golden outputs)
//   written 0 (bytes written to the device since it was asked last)
// Out: answers, in tokens, or numbers; of `threads` 1 if all are the same, of `check` 1 if it passes.
#pragma once

#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "session/golden.h"
#include "session/model_state.h"
#include "session/session_state.h"

namespace on_host {

using awq2trt::detail::ModelState;
using awq2trt::detail::SessionState;

inline void show(std::istringstream* in, SessionState* session) {
  std::string file;
  int32_t width = 0, height = 0;
  *in >> file >> width >> height;
  std::ifstream pixels(file, std::ios::binary);
  const std::string rgb{std::istreambuf_iterator<char>(pixels), {}};
  if (rgb.size() != 3 * static_cast<size_t>(width) * static_cast<size_t>(height)) throw std::runtime_error(file);
  session->append_image(reinterpret_cast<const uint8_t*>(rgb.data()), width, height);
}

inline std::vector<int32_t> answer(int64_t count, SessionState* session) {
  awq2trt::GenerateOptions options;
  options.max_tokens = count;
  options.ignore_model_stops = true;
  return session->generate(options, {}).tokens;
}

inline void print_tokens(const std::vector<int32_t>& tokens) {
  for (const int32_t token : tokens) std::cout << token << ' ';
  std::cout << '\n';
}

// Answers of a session's forks, each on its own thread; returns whether all are the same.
inline bool forks_agree(SessionState* session, int count, int tokens) {
  std::vector<std::unique_ptr<SessionState>> forks;
  std::vector<std::vector<int32_t>> answers(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) forks.push_back(session->fork());
  for (size_t i = 0; i < forks.size(); ++i) {
    threads.emplace_back([&, i] { answers[i] = answer(tokens, forks[i].get()); });
  }
  for (std::thread& thread : threads) thread.join();
  return std::set<std::vector<int32_t>>(answers.begin(), answers.end()).size() == 1;
}

inline bool passes_golden(const ModelState& model) {
  return awq2trt::check_golden(model.directory, *model.backend, &model.sight->contract(), model.tables.get()).calls > 0;
}

// `written`: counts bytes.
inline void serve(const std::shared_ptr<const ModelState>& model, size_t* written) {
  std::map<int, std::unique_ptr<SessionState>> sessions;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream in(line);
    std::string command;
    int number = 0;
    in >> command >> number;
    std::unique_ptr<SessionState>& session = sessions[number];
    if (command == "image") {
      show(&in, session.get());
      continue;
    }
    const std::vector<int32_t> numbers{std::istream_iterator<int32_t>(in), {}};
    if (command == "open") {
      session = std::make_unique<SessionState>(model, model->backend->new_cache(model->backend->capacity()));
    } else if (command == "append") {
      session->append_tokens(numbers);
    } else if (command == "answer") {
      print_tokens(answer(numbers.at(0), session.get()));
    } else if (command == "rewind") {
      session->rewind(numbers.at(0));
    } else if (command == "fork") {
      sessions[numbers.at(0)] = session->fork();
    } else if (command == "threads") {
      std::cout << forks_agree(session.get(), numbers.at(0), numbers.at(1)) << '\n';
    } else if (command == "check") {
      std::cout << passes_golden(*model) << '\n';
    } else if (command == "written") {
      std::cout << std::exchange(*written, 0) << '\n';
    }
  }
}

}  // namespace on_host
