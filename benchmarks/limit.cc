// Adam as a plain loop over arrays of float: what the machine can do without a framework.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>

namespace {

struct Leaf {
  int64_t size;
  const float* g;
  float *m, *v, *p;
};

struct Numbers {
  float b1, rest1, b2, rest2;
  float rate;  // the learning rate over 1 - b1^t
  float root;  // 1 over the square root of 1 - b2^t
  float eps;
};

void Adam(int64_t n, const float* __restrict g, float* __restrict m, float* __restrict v,
          float* __restrict p, const Numbers c) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = c.b1 * m[i] + c.rest1 * g[i];
    v[i] = c.b2 * v[i] + c.rest2 * g[i] * g[i];
    p[i] -= c.rate * m[i] / (std::sqrt(v[i]) * c.root + c.eps);
  }
}

// What all threads work on: each on its equal share of the elements of all leaves in a row.
struct Job {
  const Leaf* leaves;
  int64_t count, total;
  Numbers numbers;
} job;

void Share(int64_t index, int64_t threads) {
  int64_t begin = job.total * index / threads, end = job.total * (index + 1) / threads;
  for (const Leaf* leaf = job.leaves; leaf < job.leaves + job.count && end > 0; ++leaf) {
    if (begin < leaf->size) {
      const int64_t n = (end < leaf->size ? end : leaf->size) - begin;
      Adam(n, leaf->g + begin, leaf->m + begin, leaf->v + begin, leaf->p + begin, job.numbers);
      begin += n;
    }
    begin -= leaf->size;
    end -= leaf->size;
  }
}

std::atomic<int64_t> started{0}, running{0};

void Work(int64_t index, int64_t threads) {
  for (int64_t seen = 0;; ++seen) {
    started.wait(seen);
    Share(index, threads);
    if (running.fetch_sub(1) == 1) running.notify_one();
  }
}

}  // namespace

// To be called once; the threads wait for steps as long as the process lives.
extern "C" void limit_start(int64_t threads) {
  for (int64_t i = 1; i < threads; ++i) std::thread(Work, i, threads).detach();
}

extern "C" void limit_step(int64_t threads, const Leaf* leaves, int64_t count,
                           const Numbers* numbers) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += leaves[i].size;
  job = {leaves, count, total, *numbers};
  running = threads - 1;
  ++started;
  started.notify_all();
  Share(0, threads);
  for (int64_t left; (left = running) > 0;) running.wait(left);
}
