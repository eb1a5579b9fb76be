// See worker.h.
#include "backend/worker.h"

namespace awq2trt {

Worker::Worker() : thread_([this] { serve(); }) {}

Worker::~Worker() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  arrived_.notify_one();
  thread_.join();
}

void Worker::run(const std::function<void()>& work) {
  Job job;
  job.work = &work;
  std::unique_lock<std::mutex> lock(mutex_);
  jobs_.push_back(&job);
  arrived_.notify_one();
  job.ready.wait(lock, [&] { return job.done; });
  if (job.failure) std::rethrow_exception(job.failure);
}

void Worker::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    arrived_.wait(lock, [&] { return ends_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job* const job = jobs_.front();
    jobs_.pop_front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      (*job->work)();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    job->failure = failure;
    job->done = true;
    job->ready.notify_one();  // under the lock: the waiting caller destroys the job
  }
}

}  // namespace awq2trt
