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
                    const Coefficients<float>& c, const Options& options, double norm) {
  kernels.step32(leaf, begin, end, c, options, norm);
}
inline void RunStep(const Kernels& kernels, const Leaf& leaf, int64_t begin, int64_t end,
                    const Coefficients<double>& c, const Options& options, double norm) {
  kernels.step64(leaf, begin, end, c, options, norm);
}

// Every convention, place of weight decay, with and without AMSGrad and clipping.
inline std::vector<Options> EveryOptions() {
  std::vector<Options> all;
  for (Convention convention : {Convention::kOptax, Convention::kTorch, Convention::kKeras})
    for (Decay decay : {Decay::kNone, Decay::kGradient, Decay::kDecoupled})
      for (bool amsgrad : {false, true})
        for (bool clip : {false, true}) all.push_back({convention, decay, amsgrad, clip});
  return all;
}

inline std::string Describe(const Options& options) {
  constexpr const char* kConventions[] = {"optax", "torch", "keras"};
  constexpr const char* kDecays[] = {"no decay", "decay of the gradient", "decoupled decay"};
  return std::string(kConventions[static_cast<int>(options.convention)]) + ", " +
         kDecays[static_cast<int>(options.decay)] + (options.amsgrad ? ", AMSGrad" : "") +
         (options.clip ? ", clip" : "");
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
