// One step of Adam on many leaves, in blocks that span them.

#ifndef ADAMX_STEP_H_
#define ADAMX_STEP_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "leaf.h"
#include "parallel.h"

namespace adamx {

// While it lives, this thread treats subnormal numbers as zero and makes none, like XLA's threads.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
  ~FlushSubnormals() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
  FlushSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t{1} << 24)));
  }
  ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
  FlushSubnormals() {}
#endif
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
#if defined(__SSE2__)
  unsigned saved_;
#else
  uint64_t saved_ = 0;
#endif
};

constexpr int64_t kBlock = 16384;  // elements that a thread takes at a time, at least

inline bool InDouble(const Leaf& leaf) {
  for (const Array* array : {&leaf.g, &leaf.m, &leaf.v, &leaf.v_max, &leaf.p})
    if (array->dtype == Dtype::kFloat64) return true;
  return false;
}

// The elements of all leaves, one leaf after the other, in blocks: about 64 of them, so that
// threads get even shares, but of 1 to 16 times kBlock each.
class Blocks {
 public:
  explicit Blocks(const std::vector<Leaf>& leaves) : leaves_(leaves) {
    ends_.reserve(leaves.size());
    for (const Leaf& leaf : leaves) ends_.push_back(total_ += leaf.size);
    size_ = kBlock * std::clamp<int64_t>(total_ / (64 * kBlock), 1, 16);
  }

  int64_t count() const { return (total_ + size_ - 1) / size_; }

  // Calls visit(leaf, begin, end) for each stretch of a leaf in a block.
  template <class Visit>
  void Each(int64_t block, Visit&& visit) const {
    int64_t at = block * size_;
    const int64_t end = std::min(at + size_, total_);
    size_t i = std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin();
    for (; at < end; ++i) {
      const int64_t start = ends_[i] - leaves_[i].size, stop = std::min(ends_[i], end);
      if (stop > at) visit(leaves_[i], at - start, stop - start);
      at = std::max(at, stop);
    }
  }

 private:
  const std::vector<Leaf>& leaves_;
  std::vector<int64_t> ends_;  // of each leaf
  int64_t total_ = 0, size_;
};

// The sum of the squares of all gradients. `threads` counts the calling one.
template <class Schedule>
double SumOfSquares(const Kernels& kernels, const std::vector<Leaf>& leaves, int64_t threads,
                    Schedule&& schedule) {
  const Blocks blocks(leaves);
  std::vector<double> parts(blocks.count());  // added up in order, whichever thread made them
  ParallelFor(blocks.count(), std::min(threads, blocks.count()) - 1, schedule, [&](int64_t block) {
    FlushSubnormals flush;
    blocks.Each(block, [&](const Leaf& leaf, int64_t begin, int64_t end) {
      parts[block] += kernels.sum_of_squares(leaf.g, begin, end);
    });
  });
  double sum = 0;
  for (double part : parts) sum += part;
  return sum;
}

// `doubles` may be null where no leaf has an array of float64. `norm` is the global norm of the
// gradients where options.clip.
template <class Schedule>
void StepAll(const Kernels& kernels, const std::vector<Leaf>& leaves,
             const Scalars<float>& floats, const Scalars<double>* doubles,
             const Options& options, double norm, int64_t threads, Schedule&& schedule) {
  const Blocks blocks(leaves);
  ParallelFor(blocks.count(), std::min(threads, blocks.count()) - 1, schedule, [&](int64_t block) {
    FlushSubnormals flush;
    blocks.Each(block, [&](const Leaf& leaf, int64_t begin, int64_t end) {
      if (leaf.group != 0) {
        kernels.step_blockwise(leaf, begin, end, floats, options, norm);
      } else if (InDouble(leaf)) {
        kernels.step64(leaf, begin, end, *doubles, options, norm);
      } else {
        kernels.step32(leaf, begin, end, floats, options, norm);
      }
    });
  });
}

}  // namespace adamx

#endif  // ADAMX_STEP_H_
