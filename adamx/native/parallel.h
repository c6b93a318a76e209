// Blocks of work shared between the calling thread and a thread pool.

#ifndef ADAMX_PARALLEL_H_
#define ADAMX_PARALLEL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

namespace adamx {

// Runs body(0), ..., body(blocks - 1), each once, and returns when all are done.
//
// `schedule` gives a task to a thread pool; it is called `helpers` times. The calling thread works
// too, and takes every block that no task has taken. So it waits only for blocks that a task has
// begun, never for a task to start: it cannot deadlock, however busy or small the pool is. A task
// that starts late finds no block and does not touch `body`, which may no longer exist by then.
template <class Schedule, class Body>
void ParallelFor(int64_t blocks, int64_t helpers, Schedule&& schedule, const Body& body) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  if (helpers <= 0 || blocks <= 1) {
    for (int64_t i = 0; i < blocks; ++i) body(i);
    return;
  }
  auto shared = std::make_shared<Shared>();
  auto work = [shared, blocks, &body] {
    int64_t finished = 0;
    for (int64_t i; (i = shared->next.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
      body(i);
      ++finished;
    }
    if (finished == 0) return;
    if (shared->done.fetch_add(finished, std::memory_order_acq_rel) + finished == blocks) {
      std::lock_guard<std::mutex> lock(shared->mutex);
      shared->all_done.notify_all();
    }
  };
  for (int64_t i = 0; i < helpers; ++i) schedule(std::decay_t<decltype(work)>(work));
  work();
  auto all_done = [&] { return shared->done.load(std::memory_order_acquire) == blocks; };
  for (int spin = 0; spin < 4096 && !all_done(); ++spin) {
  }
  if (!all_done()) {
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->all_done.wait(lock, all_done);
  }
}

}  // namespace adamx

#endif  // ADAMX_PARALLEL_H_
