// One thread that does all work on a device, one piece after another, in the order of arrival. In: functions, from any
// thread. Out: their exceptions, thrown to the caller.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace awq2trt {

class Worker {
 public:
  Worker();
  ~Worker();  // after all work that has arrived
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Runs `work` and waits for it.
  void run(const std::function<void()>& work);

 private:
  struct Job {
    const std::function<void()>* work;
    std::exception_ptr failure;
    bool done = false;
    std::condition_variable ready;
  };
  void serve();

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Job*> jobs_;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace awq2trt
