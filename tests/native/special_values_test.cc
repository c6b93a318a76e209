// NaN, infinity, signed zero and subnormal numbers go through a step as through its formulas.

#include <limits>

#include "arrays.h"
#include "step.h"

namespace adamx::test {
namespace {

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kTiny = std::numeric_limits<T>::denorm_min();

// A leaf with every combination of `values` as g, m, v and p; v_max goes with the others in turn.
template <class T>
LeafArrays Combinations(const std::vector<T>& values) {
  const int64_t count = static_cast<int64_t>(values.size());
  const int64_t size = count * count * count * count;
  LeafArrays arrays(size, AllOf(kDtypeOf<T>));
  for (int64_t i = 0; i < size; ++i) {
    int64_t rest = i;
    for (int place : {kG, kM, kV, kP}) {
      arrays[place].Set(i, values[rest % count]);
      rest /= count;
    }
    arrays[kVMax].Set(i, values[i % (count + 1) % count]);
  }
  return arrays;
}

// The options, and whether the leaf has weight decay.
std::vector<std::pair<Options, bool>> WithoutClipping() {
  std::vector<std::pair<Options, bool>> all;
  for (const Options& options : EveryOptions()) {
    if (options.clip) continue;
    all.emplace_back(options, true);
    if (options.decoupled) all.emplace_back(options, false);  // without decay both kinds are one
  }
  return all;
}

// Hyperparameters on both branches of the moving average; the last divides by zero where v is 0.
std::vector<Hyperparameters> EveryHyperparameters() {
  Hyperparameters usual, small, no_epsilon;
  small.b1 = 0.3L, small.b2 = 0.4L;
  no_epsilon.eps = no_epsilon.eps_root = 0;
  return {usual, small, no_epsilon};
}

// Whether one number is another up to rounding: the same infinity, any NaN for NaN, and, where
// nothing was rounded to zero on the way, the same zero.
template <class T>
bool Close(double found, T expected, T scale, bool has_tiny) {
  if (std::isnan(expected)) return std::isnan(found);
  if (std::isinf(expected)) return found == expected;
  const double bound = 16 * (std::numeric_limits<T>::epsilon() * static_cast<double>(scale) +
                             static_cast<double>(kTiny<T>));
  const bool same_sign = std::signbit(found) == std::signbit(expected);
  return std::isfinite(found) && !(std::fabs(found - expected) > bound) &&
         (expected != 0 || has_tiny || same_sign);
}

template <class T>
void TestCombinations(const std::vector<T>& values) {
  const LeafArrays before = Combinations<T>(values);
  std::vector<Element<T>> elements;
  for (int64_t i = 0; i < before.size(); ++i) elements.push_back(before.At<T>(i));
  for (const auto& [options, decays] : WithoutClipping())
    for (const Hyperparameters& h : EveryHyperparameters()) {
      const Scalars<T> c = Rounded<T>(h);
      std::vector<Expected<T>> expected;
      for (const Element<T>& x : elements)
        expected.push_back(Reference(x, c, options, decays, T(0), AsInNumerics()));
      for (const Kernels* kernels : EveryKernels()) {
        LeafArrays found = before;
        found.set_decays(decays);
        RunStep(*kernels, found.leaf(options.amsgrad), 0, before.size(), c, options, 0);
        for (int64_t i = 0; i < before.size(); ++i) {
          const Element<T>& x = elements[i];
          bool has_tiny = false;
          for (T y : {x.g, x.m, x.v, x.v_max, x.p}) has_tiny |= y != 0 && std::fabs(y) < T(1e-9);
          for (int place : {kM, kV, kVMax, kP}) {
            if (place == kVMax && !options.amsgrad) continue;
            // Without epsilon, what little is left of a tiny v decides the size of a step.
            if (place == kP && has_tiny && c.eps == 0) continue;
            const double result = found[place].Get(i);
            const T value = Part(expected[i].value, place), scale = Part(expected[i].scale, place);
            CHECK(Close(result, value, scale, has_tiny),
                  "%s, %s: %s is %g, expected %g, from g %g, m %g, v %g, v_max %g, p %g",
                  kernels->name, Describe(options).c_str(), kPlaceNames[place], result,
                  double{value}, double{x.g}, double{x.m}, double{x.v}, double{x.v_max},
                  double{x.p});
          }
        }
      }
    }
}

TEST(SpecialValuesInFloat) {
  TestCombinations<float>({0.0f, -0.0f, 1, -1, kTiny<float>, -kTiny<float>, 1e-15f, -1e15f,
                           std::numeric_limits<float>::max(), kInfinity<float>,
                           -kInfinity<float>, std::numeric_limits<float>::quiet_NaN()});
}

TEST(SpecialValuesInDouble) {
  TestCombinations<double>({0.0, -0.0, 1, -1, kTiny<double>, -kTiny<double>, 1e-15, -1e15,
                            std::numeric_limits<double>::max(), kInfinity<double>,
                            -kInfinity<double>, std::numeric_limits<double>::quiet_NaN()});
}

void StepHere(const Kernels& kernels, LeafArrays& arrays, const Hyperparameters& h,
              const Options& options) {
  const Scalars<double> doubles = Rounded<double>(h);
  const std::vector<Leaf> leaves = {arrays.leaf(options.amsgrad)};
  const auto no_pool = [](auto) {};
  const double norm = options.clip ? std::sqrt(SumOfSquares(kernels, leaves, 1, no_pool)) : 0;
  StepAll(kernels, leaves, Rounded<float>(h), &doubles, options, norm, 1, no_pool);
}

// A v that overflows, here one of half precision, stays infinite, and its parameter where it is.
TEST(InfiniteSecondMoment) {
  for (const Kernels* kernels : EveryKernels())
    for (const auto& [options, decays] : WithoutClipping()) {
      if (decays) continue;
      const Dtype f32 = Dtype::kFloat32, f16 = Dtype::kFloat16;
      LeafArrays arrays(1, {f32, f32, f16, f16, f32}, false);
      for (int place = 0; place < kPlaces; ++place) arrays[place].Set(0, 1);
      arrays[kG].Set(0, 1e4);
      StepHere(*kernels, arrays, {}, options);
      CHECK(std::isinf(arrays[kV].Get(0)) && std::isfinite(arrays[kP].Get(0)));
      CHECK(!options.amsgrad || std::isinf(arrays[kVMax].Get(0)));
      const double p = arrays[kP].Get(0);
      for (double g : {1.0, 0.0, -1e30, 3e38}) {
        arrays[kG].Set(0, g);
        StepHere(*kernels, arrays, {}, options);
        CHECK(arrays[kV].Get(0) == kInfinity<double> && arrays[kP].Get(0) == p, "g %g, p %g", g,
              arrays[kP].Get(0));
      }
    }
}

// The global norm: of NaN it makes NaN of everything, and of infinity 0, but for infinity itself.
TEST(ClipsSpecialValues) {
  const Options options = With(kOptax, false, true, /*clip=*/true);
  Hyperparameters h;
  h.b1 = 0.5L;  // from m = 0: half of the gradient
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = kInfinity<double>;
  const double max_norm = static_cast<double>(h.max_norm);
  const struct { double g[2], m[2]; } examples[] = {
      {{nan, 1}, {nan, nan}},
      {{infinity, 1}, {nan, 0}},
      {{-infinity, -1}, {nan, 0}},
      {{0, 0}, {0, 0}},
      {{max_norm, 0}, {max_norm / 2, 0}},
      {{0, 4 * max_norm}, {0, max_norm / 2}},
      {{0, max_norm / 4}, {0, max_norm / 8}}};
  for (const Kernels* kernels : EveryKernels())
    for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16, Dtype::kFloat16})
      for (const auto& example : examples) {
        LeafArrays arrays(2, AllOf(dtype));
        for (int i : {0, 1}) {
          for (int place = 0; place < kPlaces; ++place) arrays[place].Set(i, 0);
          arrays[kG].Set(i, example.g[i]);
        }
        StepHere(*kernels, arrays, h, options);
        for (int i : {0, 1}) {
          const double m = arrays[kM].Get(i);
          CHECK(std::isnan(example.m[i]) ? std::isnan(m) : m == example.m[i],
                "%s, dtype %d: of gradients %g, %g, m[%d] is %g", kernels->name,
                static_cast<int>(dtype), example.g[0], example.g[1], i, m);
        }
      }
}

// ---- Subnormal numbers --------------------------------------------------------------------------

template <class T>
bool KeepsSubnormals() {
  volatile T smallest = std::numeric_limits<T>::min();  // volatile: computed here and now
  volatile T half = smallest / 2;
  return half * 2 == smallest;
}

TEST(FlushSubnormalsWhileItLives) {
  CHECK(KeepsSubnormals<float>() && KeepsSubnormals<double>());
  {
    FlushSubnormals flush;
    CHECK(!KeepsSubnormals<float>() && !KeepsSubnormals<double>());
    { FlushSubnormals again; }
    CHECK(!KeepsSubnormals<float>() && !KeepsSubnormals<double>());
  }
  CHECK(KeepsSubnormals<float>() && KeepsSubnormals<double>());
}

// In StepAll a subnormal number is a zero of its sign, and no result is subnormal.
template <class T>
void TestFlushed(Dtype dtype) {
  const std::vector<T> values = {T(0), T(-0.0), T(1), T(-1), kTiny<T>, -kTiny<T>,
                                 std::numeric_limits<T>::min(), std::numeric_limits<T>::min() / 2};
  const T smallest = dtype == Dtype::kBfloat16 ? T(std::numeric_limits<float>::min())
                                               : std::numeric_limits<T>::min();
  const LeafArrays all = Combinations<T>(values);
  LeafArrays before(all.size(), AllOf(dtype)), zeros(all.size(), AllOf(dtype));
  before.FillFrom(all);
  for (int place = 0; place < kPlaces; ++place)
    for (int64_t i = 0; i < all.size(); ++i) {
      if (place == kV || place == kVMax) before[place].Set(i, std::fabs(before[place].Get(i)));
      const double x = before[place].Get(i);
      zeros[place].Set(i, std::fabs(x) < smallest ? std::copysign(0.0, x) : x);
    }
  for (const Kernels* kernels : EveryKernels())
    for (const auto& [options, decays] : WithoutClipping()) {
      LeafArrays found = before, expected = zeros;
      found.set_decays(decays), expected.set_decays(decays);
      StepHere(*kernels, found, {}, options);
      StepHere(*kernels, expected, {}, options);
      for (int place : {kM, kV, kVMax, kP}) {
        if (place == kVMax && !options.amsgrad) continue;
        CHECK(found[place].SameBits(expected[place], 0, all.size()), "%s", kPlaceNames[place]);
        for (int64_t i = 0; i < all.size(); ++i) {
          const double x = found[place].Get(i);
          CHECK(x == 0 || std::fabs(x) >= smallest, "%s: %g", kPlaceNames[place], x);
        }
      }
    }
  CHECK(KeepsSubnormals<float>());  // as before
}

TEST(SubnormalsAreZero) {
  TestFlushed<float>(Dtype::kFloat32);
  TestFlushed<double>(Dtype::kFloat64);
  TestFlushed<float>(Dtype::kBfloat16);
}

// The subnormal numbers of half precision are normal numbers of float, and are kept.
TEST(SubnormalHalvesAreKept) {
  Dtypes dtypes = AllOf(Dtype::kFloat32);
  dtypes[kG] = dtypes[kP] = Dtype::kFloat16;
  LeafArrays arrays(0x400, dtypes, false);
  Hyperparameters h;
  h.b1 = 0, h.learning_rate = 0;
  for (const Kernels* kernels : EveryKernels()) {
    for (int64_t i = 0; i < arrays.size(); ++i) {
      for (int place : {kM, kV}) arrays[place].Set(i, 0);
      for (int place : {kG, kP}) arrays[place].SetBits16(i, static_cast<uint16_t>(i));
    }
    StepHere(*kernels, arrays, h, kOptax);
    for (int64_t i = 0; i < arrays.size(); ++i) {
      CHECK(arrays[kP].Bits16(i) == i, "%04x", arrays[kP].Bits16(i));
      CHECK(arrays[kM].Get(i) == static_cast<double>(i) * 0x1p-24, "%g", arrays[kM].Get(i));
    }
  }
}

}  // namespace
}  // namespace adamx::test
