// What a test needs of a framework: TEST, CHECK, random numbers, and the kernels to test.

#ifndef ADAMX_TESTS_CHECK_H_
#define ADAMX_TESTS_CHECK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "leaf.h"

namespace adamx::test {

// Counts a failure of the running test, and prints the first ones; callable from any thread.
__attribute__((format(printf, 4, 5))) void Fail(const char* file, int line, const char* what,
                                                const char* format, ...);

// CHECK(condition) or CHECK(condition, "x is %d", x).
#define CHECK(condition, ...) \
  do { \
    if (!(condition)) ::adamx::test::Fail(__FILE__, __LINE__, #condition, " " __VA_ARGS__); \
  } while (false)

// TEST(Name) { ... } is run by main.
struct Test {
  Test(const char* name, void (*run)());
  const char* name;
  void (*run)();
};

#define TEST(name) \
  static void name(); \
  static const ::adamx::test::Test name##_test(#name, &name); \
  static void name()

// Every set of kernels that this processor can run.
std::vector<const Kernels*> EveryKernels();

inline void RunStep(const Kernels& kernels, const Leaf& leaf, int64_t begin, int64_t end,
                    const Scalars<float>& c, const Options& options, double norm) {
  kernels.step32(leaf, begin, end, c, options, norm);
}
inline void RunStep(const Kernels& kernels, const Leaf& leaf, int64_t begin, int64_t end,
                    const Scalars<double>& c, const Options& options, double norm) {
  kernels.step64(leaf, begin, end, c, options, norm);
}

// A framework's convention, without AMSGrad and clipping, with decoupled weight decay.
constexpr Options kOptax = {true, true, false, true, false};
constexpr Options kTorch = {true, false, false, true, false};
constexpr Options kKeras = {false, false, false, true, false};

constexpr Options With(Options options, bool amsgrad, bool decoupled, bool clip) {
  options.amsgrad = amsgrad, options.decoupled = decoupled, options.clip = clip;
  return options;
}

// Every convention and kind of weight decay, with and without AMSGrad and clipping.
inline std::vector<Options> EveryOptions() {
  std::vector<Options> all;
  for (const Options& convention : {kOptax, kTorch, kKeras})
    for (bool decoupled : {false, true})
      for (bool amsgrad : {false, true})
        for (bool clip : {false, true}) all.push_back(With(convention, amsgrad, decoupled, clip));
  return all;
}

inline std::string Describe(const Options& options) {
  return std::string(options.eps_beside_corrected ? "corrected eps" : "uncorrected eps") +
         (options.maximum_of_corrected ? ", corrected maximum" : ", uncorrected maximum") +
         (options.decoupled ? ", decoupled decay" : ", decay of the gradient") +
         (options.amsgrad ? ", AMSGrad" : "") + (options.clip ? ", clip" : "");
}

// Numbers that are the same on every machine: splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t Below(int64_t n) { return static_cast<int64_t>(Bits() % static_cast<uint64_t>(n)); }
  double Between(double low, double high) {
    return low + (high - low) * (static_cast<double>(Bits() >> 11) * 0x1p-53);
  }

 private:
  uint64_t state_;
};

}  // namespace adamx::test

#endif  // ADAMX_TESTS_CHECK_H_
