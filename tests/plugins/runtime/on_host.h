// A backend with the host in place of the GPU: memory that is counted, and commands, one per line; `S` is the number of
// a session. Each command that asks something gets a line of answer.
//   open S | close S | append S TOKEN... | best S | logits S | rewind S POSITION | fork S NEW | threads S COUNT TOKENS
//   see PIXELS VALUE: the pieces of an image of so many equal numbers
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "backend/device_memory.h"

namespace on_host {

// Counts allocated memory, so that leaks show, and bytes that are written; refuses threads other than the worker.
class HostMemory : public awq2trt::DeviceMemory {
 public:
  explicit HostMemory(size_t* live, size_t* written = nullptr) : live_(live), written_(written) {}
  const char* runtime_name() const override { return "Cpu"; }
  int32_t index() const override { return 0; }
  const std::string& title() const override { return title_; }
  void* stream() const override { return nullptr; }
  awq2trt::MemoryInfo info() override { return {1 << 30, 1 << 30}; }
  void use_on_this_thread() override { thread_ = std::this_thread::get_id(); }
  void* allocate(size_t bytes) override { return allocate_host(bytes); }
  void free(void* memory) noexcept override { free_host(memory); }
  void* allocate_host(size_t bytes) override {
    check_thread();
    ++*live_;
    return std::calloc(bytes, 1);
  }
  void free_host(void* memory) noexcept override {
    --*live_;
    std::free(memory);
  }
  void write(void* to, const void* from, size_t bytes) override {
    if (written_ != nullptr) *written_ += bytes;
    copy(to, from, bytes);
  }
  void read(void* to, const void* from, size_t bytes) override { copy(to, from, bytes); }
  void copy(void* to, const void* from, size_t bytes) override {
    check_thread();
    std::memcpy(to, from, bytes);
  }
  void synchronize() override { check_thread(); }

 private:
  void check_thread() const {
    if (std::this_thread::get_id() != thread_) throw std::runtime_error("the device is used on another thread");
  }

  size_t* live_;
  size_t* written_;  // or null
  std::string title_ = "the host";
  std::thread::id thread_;
};

using Sessions = std::map<int, std::unique_ptr<awq2trt::Cache>>;

// Appends tokens, or the rows of a decoder of embeddings.
inline void append(const awq2trt::Backend& backend, const std::vector<int32_t>& tokens, awq2trt::Cache* cache) {
  const awq2trt::Embedder* const embedder = backend.embedder();
  std::vector<float> rows;
  if (embedder != nullptr) {
    rows.resize(tokens.size() * static_cast<size_t>(embedder->width()));
    embedder->embed(tokens.data(), tokens.size(), rows.data());
  }
  cache->append({tokens.data(), tokens.size(), rows.data()});
}

// All scores of a session's last call.
inline std::vector<float> logits_of(const awq2trt::Backend& backend, awq2trt::Cache* cache) {
  std::vector<float> logits(static_cast<size_t>(backend.vocab_size()));
  cache->read_logits(logits.data());
  return logits;
}

// The token with the largest of them, as the graph or else the host finds it.
inline int32_t best_of(const awq2trt::Backend& backend, awq2trt::Cache* cache) {
  if (cache->finds_best()) return cache->best();
  const std::vector<float> logits = logits_of(backend, cache);
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Greedy continuations of one session's forks, each on its own thread; returns whether all are the same.
inline bool same_on_threads(const awq2trt::Backend& backend, const awq2trt::Cache& session, int count, int tokens) {
  std::vector<std::vector<int32_t>> answers(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (auto& answer : answers) {
    threads.emplace_back([&answer, &backend, &session, tokens] {
      const auto copy = session.fork();
      for (int i = 0; i < tokens; ++i) {
        answer.push_back(best_of(backend, copy.get()));
        append(backend, {answer.back()}, copy.get());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return std::set<std::vector<int32_t>>(answers.begin(), answers.end()).size() == 1;
}

inline void print(const std::vector<float>& numbers) {
  for (const float number : numbers) std::cout << number << ' ';
  std::cout << '\n';
}

inline void serve(const awq2trt::Backend& backend) {
  Sessions sessions;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream in(line);
    std::string command;
    int session = 0;
    in >> command >> session;
    std::vector<int32_t> numbers;
    for (int32_t number = 0; in >> number;) numbers.push_back(number);
    if (command == "open") {
      sessions[session] = backend.new_cache(backend.capacity());
    } else if (command == "close") {
      sessions.erase(session);
    } else if (command == "append") {
      append(backend, numbers, sessions.at(session).get());
    } else if (command == "see") {
      const int64_t side = std::lround(std::sqrt(session / 3));
      awq2trt::PreparedImage image;
      image.pixels.assign(static_cast<size_t>(session), static_cast<float>(numbers.at(0)));
      image.shape = {1, 3, side, side};
      image.pieces = numbers.size() > 1 ? numbers[1] : 1;
      print(backend.embedder()->see(image));
    } else if (command == "rewind") {
      sessions.at(session)->rewind(numbers.at(0));
    } else if (command == "fork") {
      sessions[numbers.at(0)] = sessions.at(session)->fork();
    } else if (command == "best") {
      std::cout << best_of(backend, sessions.at(session).get()) << '\n';
    } else if (command == "logits") {
      print(logits_of(backend, sessions.at(session).get()));
    } else if (command == "threads") {
      std::cout << same_on_threads(backend, *sessions.at(session), numbers.at(0), numbers.at(1)) << '\n';
    }
  }
}

}  // namespace on_host
