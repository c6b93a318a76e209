// Thread pools to schedule on: one that works, and some that do not do what one would like.

#ifndef ADAMX_TESTS_POOL_H_
#define ADAMX_TESTS_POOL_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace adamx::test {

using Task = std::function<void()>;

// Counts down to zero once; waiting ends then.
class Latch {
 public:
  explicit Latch(int64_t count) : count_(count) {}

  void CountDown() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (--count_ == 0) is_zero_.notify_all();
  }
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    is_zero_.wait(lock, [this] { return count_ <= 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable is_zero_;
  int64_t count_;
};

// Runs tasks in the order in which they come. Those that wait at the end are still run.
class Pool {
 public:
  explicit Pool(int64_t threads) {
    for (int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int64_t threads() const { return static_cast<int64_t>(threads_.size()); }

  void Schedule(Task task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_one();
  }

 private:
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return closing_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      Task task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

// Runs nothing when it is scheduled, but all of it, in new threads, when it is asked to.
class LatePool {
 public:
  void Schedule(Task task) { tasks_.push_back(std::move(task)); }
  int64_t waiting() const { return static_cast<int64_t>(tasks_.size()); }

  void RunAll() {
    std::vector<std::thread> threads;
    for (Task& task : tasks_) threads.emplace_back(std::move(task));
    for (std::thread& thread : threads) thread.join();
    tasks_.clear();
  }

 private:
  std::vector<Task> tasks_;
};

}  // namespace adamx::test

#endif  // ADAMX_TESTS_POOL_H_
