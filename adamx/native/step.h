// One step of Adam on all leaves, in blocks that span them.

#ifndef ADAMX_STEP_H_
#define ADAMX_STEP_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "leaf.h"
#include "parallel.h"

namespace adamx {

// While it lives, this thread takes subnormal numbers as zero and makes none, as XLA's do.
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

constexpr int64_t kBlock = 16384;  // elements that a thread takes at a time

inline bool InDouble(const Leaf& leaf) {
  for (const Array* array : {&leaf.g, &leaf.m, &leaf.v, &leaf.p})
    if (array->dtype == Dtype::kFloat64) return true;
  return false;
}

// `doubles` may be null where no leaf has an array of float64. `threads` counts the calling one.
template <class Schedule>
void StepAll(const Kernels& kernels, const std::vector<Leaf>& leaves,
             const Coefficients<float>& floats, const Coefficients<double>* doubles,
             const Options& options, int64_t threads, Schedule&& schedule) {
  std::vector<int64_t> ends;  // of each leaf, counted in elements of the whole tree
  ends.reserve(leaves.size());
  int64_t total = 0;
  for (const Leaf& leaf : leaves) ends.push_back(total += leaf.size);
  const int64_t blocks = (total + kBlock - 1) / kBlock;
  const int64_t helpers = std::min(threads, blocks) - 1;

  // Calls visit(leaf, begin, end) for each stretch of a leaf in a block.
  auto each_stretch = [&](int64_t block, auto&& visit) {
    int64_t at = block * kBlock;
    const int64_t end = std::min(at + kBlock, total);
    size_t i = std::upper_bound(ends.begin(), ends.end(), at) - ends.begin();
    for (; at < end; ++i) {
      const int64_t start = ends[i] - leaves[i].size, stop = std::min(ends[i], end);
      if (stop > at) visit(leaves[i], at - start, stop - start);
      at = std::max(at, stop);
    }
  };

  double norm = 0;
  if (options.clip) {
    std::vector<double> parts(blocks);  // added up in order: the threads leave no trace
    ParallelFor(blocks, helpers, schedule, [&](int64_t block) {
      FlushSubnormals flush;
      each_stretch(block, [&](const Leaf& leaf, int64_t begin, int64_t end) {
        parts[block] += kernels.sum_of_squares(leaf.g, begin, end);
      });
    });
    double sum = 0;
    for (double part : parts) sum += part;
    norm = std::sqrt(doubles ? sum : static_cast<float>(sum));
  }

  ParallelFor(blocks, helpers, schedule, [&](int64_t block) {
    FlushSubnormals flush;
    each_stretch(block, [&](const Leaf& leaf, int64_t begin, int64_t end) {
      if (InDouble(leaf)) {
        kernels.step64(leaf, begin, end, *doubles, options, norm);
      } else {
        kernels.step32(leaf, begin, end, floats, options, norm);
      }
    });
  });
}

}  // namespace adamx

#endif  // ADAMX_STEP_H_
