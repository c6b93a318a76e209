// A step on one leaf, for every instruction set and option, against the reference.

#include <cstdio>

#include "arrays.h"
#include "step.h"

namespace adamx::test {
namespace {

constexpr int64_t kSizes[] = {0, 1, 2, 15, 16, 17, 31, 63, 64, 65, 1023, 1024, 1025};
constexpr int64_t kLargeSizes[] = {16383, 16384, 16385};
constexpr double kNorm = 3;  // of the gradients, where they are clipped

// The hyperparameters, and weights of the moving averages on either side of one half.
std::vector<Hyperparameters> EveryHyperparameters() {
  Hyperparameters usual, small_b1, small_b2;
  small_b1.b1 = 0.3L;
  small_b1.eps = 1e-8L, small_b1.eps_root = 0;  // Adam's own epsilon
  small_b1.max_norm = kNorm;                    // clips, by a factor of 1
  small_b2.b1 = 0, small_b2.b2 = 0.4L;
  small_b2.max_norm = 4;  // does not clip
  return {usual, small_b1, small_b2};
}

// The largest errors of m, v, v_max and p, in units in the last place of what enters them.
struct Errors {
  double largest[kPlaces] = {};
};

// Compares every element with the reference, which is computed in the wider type R.
template <class T, class R>
void CompareWithReference(const LeafArrays& found, const LeafArrays& before,
                          const Hyperparameters& h, const Options& options,
                          const std::vector<Expected<R>>& expected, const std::string& what,
                          Errors* errors, const Errors& bounds) {
  for (int64_t i = 0; i < found.size(); ++i) {
    for (int place : {kM, kV, kVMax, kP}) {
      if (place == kVMax && !options.amsgrad) continue;
      const double x = found[place].Get(i);
      const R value = Part(expected[i].value, place), scale = Part(expected[i].scale, place);
      const double unit = UnitInLastPlace(static_cast<double>(scale), FormatOf(kDtypeOf<T>));
      const double error = static_cast<double>(std::fabs(x - value)) / unit;
      errors->largest[place] = std::max(errors->largest[place], error);
      CHECK(error <= bounds.largest[place], "%s, b1 %.1f: %s[%d of %d] is %.17g, expected %.17g",
            what.c_str(), static_cast<double>(h.b1), kPlaceNames[place], static_cast<int>(i),
            static_cast<int>(found.size()), x, static_cast<double>(value));
    }
  }
  CHECK(found[kG].SameBits(before[kG], 0, found.size()), "%s", what.c_str());
  for (int place = 0; place < kPlaces; ++place)
    CHECK(found[place].GuardsIntact(), "%s: %s", what.c_str(), kPlaceNames[place]);
}

template <class T, class R>
void TestAgainstReference(const char* name, const Errors& bounds) {
  Errors errors;
  uint64_t seed = 0;
  for (const Options& options : EveryOptions())
    for (const Hyperparameters& h : EveryHyperparameters()) {
      std::vector<int64_t> sizes(std::begin(kSizes), std::end(kSizes));
      if (++seed % 5 == 0) sizes.push_back(kLargeSizes[seed / 5 % 3]);
      for (int64_t size : sizes) {
        const bool decays = size % 4 != 3;
        LeafArrays before(size, AllOf(kDtypeOf<T>), decays);
        before.FillRandom(seed + size);
        std::vector<Expected<R>> expected;
        for (int64_t i = 0; i < size; ++i)
          expected.push_back(Reference(before.At<R>(i), Rounded<R>(h), options, decays, R(kNorm),
                                       AsDefined()));
        for (const Kernels* kernels : EveryKernels()) {
          LeafArrays found = before;
          RunStep(*kernels, found.leaf(options.amsgrad), 0, size, Rounded<T>(h), options, kNorm);
          CompareWithReference<T>(found, before, h, options, expected,
                                  std::string(kernels->name) + ", " + Describe(options), &errors,
                                  bounds);
        }
      }
    }
  std::printf("%s: off by at most", name);
  for (int place : {kM, kV, kVMax, kP})
    std::printf(" %.2f (%s)", errors.largest[place], kPlaceNames[place]);
  std::printf(" units in the last place\n");
}

// Not far above what is measured and printed.
constexpr Errors kBounds = {{0, 5, 7, 8, 7}};

TEST(StepInFloat) { TestAgainstReference<float, double>("float", kBounds); }
TEST(StepInDouble) { TestAgainstReference<double, long double>("double", kBounds); }

// A leaf in pieces gives the same bits as at once: where an element lies leaves no trace. And a
// piece changes nothing outside of itself.
template <class T>
void TestPieces() {
  constexpr int64_t kSize = 20001;
  const Scalars<T> c = Rounded<T>({});
  LeafArrays before(kSize, AllOf(kDtypeOf<T>));
  before.FillRandom(1);
  Random random(2);
  std::vector<std::pair<int64_t, int64_t>> pieces;
  for (int64_t at = 0, end; at < kSize; at = end)
    pieces.emplace_back(at, end = std::min(at + 1 + random.Below(1500), kSize));

  for (const Kernels* kernels : EveryKernels())
    for (const Options& options : EveryOptions()) {
      const std::string what = std::string(kernels->name) + ", " + Describe(options);
      LeafArrays whole = before, found = before;
      auto step = [&](LeafArrays& arrays, int64_t begin, int64_t end) {
        RunStep(*kernels, arrays.leaf(options.amsgrad), begin, end, c, options, kNorm);
      };
      step(whole, 0, kSize);
      step(found, 4001, 4001);
      CheckSame(found, before, what + ", a piece of nothing");
      for (size_t i = 0; i < pieces.size(); i += 2) step(found, pieces[i].first, pieces[i].second);
      for (size_t i = 0; i < pieces.size(); ++i)
        for (int place = 0; place < kPlaces; ++place) {
          const auto [begin, end] = pieces[i];
          const GuardedArray& expected = (i % 2 ? before : whole)[place];
          CHECK(found[place].SameBits(expected, begin, end), "%s: %s in [%d, %d)", what.c_str(),
                kPlaceNames[place], static_cast<int>(begin), static_cast<int>(end));
        }
      for (size_t i = 1; i < pieces.size(); i += 2) step(found, pieces[i].first, pieces[i].second);
      CheckSame(found, whole, what);
    }
}

TEST(Pieces) {
  TestPieces<float>();
  TestPieces<double>();
}

// Every mixture of dtypes gives what the widest of them gives, rounded once.
template <class T>
void TestMixture(const Dtypes& dtypes, int64_t size, const Options& options, uint64_t seed) {
  const std::vector<Hyperparameters> every = EveryHyperparameters();
  const Scalars<T> c = Rounded<T>(every[seed % every.size()]);
  LeafArrays before(size, dtypes);
  before.FillRandom(seed);
  for (const Kernels* kernels : EveryKernels()) {
    LeafArrays wide(size, AllOf(kDtypeOf<T>)), expected(size, dtypes), found(size, dtypes);
    wide.FillFrom(before);
    RunStep(*kernels, wide.leaf(options.amsgrad), 0, size, c, options, kNorm);
    expected.FillFrom(wide);
    found.FillFrom(before);
    RunStep(*kernels, found.leaf(options.amsgrad), 0, size, c, options, kNorm);
    std::string what = std::string(kernels->name) + ", " + Describe(options) + ", dtypes";
    for (Dtype dtype : dtypes) what += " " + std::to_string(static_cast<int>(dtype));
    CheckSame(found, expected, what);
  }
}

TEST(MixedDtypes) {
  const std::vector<Options> every = EveryOptions();
  for (uint64_t mixture = 0; mixture < 1 << (2 * kPlaces); ++mixture) {
    Dtypes dtypes;
    for (int place = 0; place < kPlaces; ++place)
      dtypes[place] = static_cast<Dtype>(mixture >> (2 * place) & 3);
    const bool in_double =
        std::find(dtypes.begin(), dtypes.end(), Dtype::kFloat64) != dtypes.end();
    const int64_t size = mixture % 3 ? 2049 + mixture % 100 : mixture % 70;
    LeafArrays arrays(1, dtypes);
    CHECK(InDouble(arrays.leaf(true)) == in_double, "mixture %d", static_cast<int>(mixture));
    Options options = every[Random(mixture).Below(every.size())];
    options.amsgrad |= dtypes[kVMax] != Dtype::kFloat32;  // so that it is looked at
    if (in_double) {
      TestMixture<double>(dtypes, size, options, mixture);
    } else {
      TestMixture<float>(dtypes, size, options, mixture);
    }
  }
}

TEST(SumOfSquares) {
  double largest = 0;  // relative error, in units of the dtype
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16, Dtype::kFloat16})
    for (int64_t size : {0, 1, 2, 63, 64, 65, 127, 1023, 1024, 1025, 16384, 16385}) {
      LeafArrays arrays(size, AllOf(dtype));
      arrays.FillRandom(size);
      const double epsilon = dtype == Dtype::kFloat64 ? 0x1p-52 : 0x1p-23;
      for (int64_t begin : {int64_t{0}, size / 3}) {
        long double expected = 0;
        for (int64_t i = begin; i < size; ++i) {
          const long double g = arrays[kG].Get(i);
          expected += g * g;
        }
        for (const Kernels* kernels : EveryKernels()) {
          const double sum = kernels->sum_of_squares(arrays[kG].array(), begin, size);
          const double error = std::fabs(static_cast<double>(sum - expected)) / epsilon;
          if (expected != 0) largest = std::max<double>(largest, error / expected);
          CHECK(error <= 4 * expected, "%s, dtype %d, size %d: %.17g, expected %.17g",
                kernels->name, static_cast<int>(dtype), static_cast<int>(size), sum,
                static_cast<double>(expected));
        }
      }
    }
  std::printf("sum of squares: off by at most %.2f epsilon\n", largest);
}

}  // namespace
}  // namespace adamx::test
