// A step on one leaf with moments in 8 bits, for every instruction set, against its definition.

#include <cstdio>

#include "coded_leaf.h"
#include "pool.h"
#include "step.h"

namespace adamx::test {
namespace {

constexpr double kNorm = 3;  // of the gradients, where they are clipped
constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr auto kNoPool = [](auto) {};
constexpr int64_t kShapes[][3] = {  // rows, columns and group
    {1, 1, 8}, {1, 7, 8}, {3, 8, 8}, {2, 100, 16}, {1, 31, 32}, {2, 32, 32}, {5, 33, 32},
    {1, 256, 32}, {1, 257, 32}, {3, 255, 32}, {2, 1000, 32}, {3, 64, 64}, {1, 1025, 64},
    {2, 100, 24}, {1, 300, 1024}, {2, 1024, 1024}, {1, 2051, 1024}};

std::vector<Options> OptionsOfCodes() {
  std::vector<Options> all;
  for (const Options& options : EveryOptions())
    if (!options.amsgrad) all.push_back(options);
  return all;
}

std::vector<Hyperparameters> EveryHyperparameters() {
  Hyperparameters usual, own_eps, no_eps, low, lowest;
  own_eps.eps = 1e-8L, own_eps.eps_root = 0, own_eps.b1 = 0.3L;
  no_eps.eps = no_eps.eps_root = 0;
  low.b1 = 0.3L, low.b2 = 0.4L, low.eps_root = 0;
  low.max_norm = 4;  // does not clip
  lowest.b1 = lowest.b2 = 0;
  return {usual, own_eps, no_eps, low, lowest};
}

void StepCodes(const Kernels& kernels, CodedLeaf& leaf, const Hyperparameters& h,
               const Options& options) {
  StepAll(kernels, {leaf.leaf()}, Rounded<float>(h), nullptr, options, kNorm, 1, kNoPool);
}

// ---- One step against its definition ------------------------------------------------------------

// How many groups kept their levels, and how many got new ones.
struct Counts {
  int64_t kept = 0, replaced = 0;
};

// The levels of a group stay, and decay as its roots do, unless a root is not among them, or levels
// that are nearer by two choices are enough. New ones begin below the smallest root, or where the
// widest reach the largest, and are as near to one another as they reach it.
void CheckLevels(const Levels& found, const Levels& before, double decay, double smallest,
                 double largest, const std::string& what, Counts* counts) {
  constexpr double kNear = 1 + 1e-5;
  const double old = before.lowest * decay, top = 1.05 * largest;
  const bool is_kept = old > 0 && found.choice == before.choice &&
                       std::fabs(found.lowest / old - 1) < 2e-6;
  ++(is_kept ? counts->kept : counts->replaced);
  const bool fits = old * kNear <= std::max(smallest, 2 * kWidest * largest) &&
                    before.Root(kTopCode) * decay >= largest * kNear;
  const double needed = top / std::max(0.995 * smallest, kWidest * largest);
  const double nearer = before.choice >= 14 ? 0 : Levels::Reach(before.choice + 2);
  const bool has_idle = nearer * kNear >= needed, has_many_idle = nearer >= needed * kNear;
  CHECK(is_kept ? !has_many_idle : !fits || has_idle,
        "%s: levels from %g with choice %d were %s, for %g to %g", what.c_str(), before.lowest,
        static_cast<int>(before.choice), is_kept ? "kept" : "replaced", smallest, largest);
  const double reach = found.choice == 15 ? 0 : Levels::Reach(found.choice + 1);
  CHECK(is_kept || (std::fabs(found.lowest * needed / top - 1) < 1e-5 &&
                    found.Root(kTopCode) * kNear >= top && reach <= needed * kNear),
        "%s: new levels from %g with choice %d, for %g to %g", what.c_str(), found.lowest,
        static_cast<int>(found.choice), smallest, largest);
}

// The codes and scales of elements [begin, end), a group, are among those to which the exact
// moments may be rounded.
void CheckGroup(const CodedLeaf& found, const CodedLeaf& before, double decay,
                const std::vector<Expected<double>>& expected, int64_t begin, int64_t end,
                const std::string& what, Counts* counts) {
  const int64_t group = found.GroupOf(begin);
  const Levels levels = found.LevelsOf(group);
  double smallest = kInfinite, largest = 0, largest_ratio = 0, worst_error = 0;
  bool is_exact = true;
  for (int64_t i = begin; i < end; ++i) {
    const double r = std::sqrt(expected[i].value.v);
    if (r > 0) smallest = std::min(smallest, r);
    largest = std::max(largest, r);
    is_exact &= expected[i].scale.v <= 100 * expected[i].value.v;
  }
  if (largest > 0 && is_exact)
    CheckLevels(levels, before.LevelsOf(group), decay, smallest, largest, what, counts);
  for (int64_t i = begin; i < end; ++i) {
    const Element<double> &value = expected[i].value, &scale = expected[i].scale;
    const int k = static_cast<int>(found.v.Get(i)), q = static_cast<int>(found.m.Get(i));
    const double r = std::sqrt(value.v), lowest = std::max(r, levels.lowest);
    CHECK((k == 0) == (r == 0) && k <= kTopCode && q != kNanCode && (k != 0 || q == 0),
          "%s: codes %d, %d of r %g", what.c_str(), k, q, r);
    if (r == 0) continue;
    // Relative to r, which is less exact where a gradient and its weight decay cancel out.
    const double error = 1e-6 * std::max(1.0, std::sqrt(scale.v / value.v));
    const double place = levels.PlaceOfRoot(r), allowed = 100 * error;
    CHECK(r <= levels.Root(kTopCode) * (1 + error), "%s: r %g above all levels", what.c_str(), r);
    CHECK(k >= std::floor(place - allowed) && k <= std::ceil(place + allowed),
          "%s: code %d of r %g, which is at %g", what.c_str(), k, r, place);

    const double ratio = value.m / lowest;
    const double ratio_error = 1e-6 * scale.m / lowest + error * std::fabs(ratio);
    largest_ratio = std::max(largest_ratio, std::fabs(ratio));
    worst_error = std::max(worst_error, ratio_error);
    const double place_m = levels.PlaceOfRatio(ratio);
    const double allowed_m = 1e-4 + levels.PlaceOfRatio(ratio_error);
    CHECK(q >= std::floor(place_m - allowed_m) && q <= std::ceil(place_m + allowed_m),
          "%s: code %d of m / r %g, which is at %g", what.c_str(), q, ratio, place_m);
  }
  CHECK(levels.m_scale >= largest_ratio - worst_error &&
            levels.m_scale <= (largest_ratio + worst_error) * (1 + 0x1p-7),
        "%s: a scale of m of %g for ratios of %g", what.c_str(), levels.m_scale, largest_ratio);
}

TEST(StepOfCodes) {
  Counts counts;
  double worst = 0;
  uint64_t seed = 0;
  for (const Options& options : OptionsOfCodes())
    for (const Hyperparameters& h : EveryHyperparameters())
      for (const auto& [rows, columns, group] : kShapes) {
        if (++seed % 3 != 0) continue;  // all options and all shapes, but not each with each
        const double sizes[] = {1, 1e-30, 1e30};
        CodedLeaf before(rows, columns, group, seed % 4 != 0);
        before.FillRandom(seed, sizes[seed % 7 < 5 ? 0 : seed % 7 - 4]);
        Hyperparameters exact = h;
        exact.eps = std::max(h.eps, 1e-200L);  // so that 0 is not divided by 0
        std::vector<Expected<double>> expected;
        for (int64_t i = 0; i < before.size(); ++i)
          expected.push_back(Reference(before.At(i), Rounded<double>(exact), options,
                                       before.decays, kNorm, AsDefined()));
        for (const Kernels* kernels : EveryKernels()) {
          const std::string what = std::string(kernels->name) + ", " + Describe(options) +
                                   ", seed " + std::to_string(seed);
          CodedLeaf found = before;
          StepCodes(*kernels, found, h, options);
          CHECK(found.g.SameBits(before.g, 0, found.size()), "%s", what.c_str());
          for (const GuardedArray* array : found.arrays())
            CHECK(array->GuardsIntact(), "%s", what.c_str());
          for (int64_t i = 0; i < found.size(); ++i) {
            const double x = found.p.Get(i), y = expected[i].value.p;
            const double unit = UnitInLastPlace(expected[i].scale.p, FormatOf(Dtype::kFloat32));
            worst = std::max(worst, std::fabs(x - y) / unit);
            CHECK(std::fabs(x - y) <= 8 * unit, "%s: p[%d] is %.9g, expected %.9g", what.c_str(),
                  static_cast<int>(i), x, y);
          }
          for (int64_t begin = 0, end; begin < found.size(); begin = end) {
            end = std::min(begin + group, (begin / columns + 1) * columns);
            CheckGroup(found, before, std::sqrt(static_cast<double>(h.b2)), expected, begin, end,
                       what, &counts);
          }
        }
      }
  std::printf("p: off by at most %.2f units in the last place; levels of %d groups of %d kept\n",
              worst, static_cast<int>(counts.kept),
              static_cast<int>(counts.kept + counts.replaced));
  CHECK(counts.kept > 100 && counts.replaced > 100);
}

// Over many keys codes have the mean of what was rounded: of r, and of m too. An r below the lowest
// level is read as that, and m is kept all the same.
TEST(MeansOfCodes) {
  constexpr int kKeys = 2000;
  const Hyperparameters h;
  int low = 0;
  for (double range : {0.5, 2.0, 14.0}) {  // in octaves; the last is more than levels reach
    CodedLeaf before(1, 128, 64);
    Random random(1);
    for (int64_t i = 0; i < before.size(); ++i) {
      const double size = std::exp2(random.Between(-range, range));
      before.g.Set(i, random.Below(2) ? size : -size);
    }
    for (const Kernels* kernels : EveryKernels()) {
      CodedLeaf start = before;
      StepCodes(*kernels, start, h, kOptax);
      for (int64_t i = 0; i < start.size(); ++i)  // so that m / r is not the same everywhere
        start.g.Set(i, before.g.Get(i) * random.Between(-0.1, 0.1));
      std::vector<double> r(start.size()), m(start.size()), r_squares(r), m_squares(r);
      for (int n = 0; n < kKeys; ++n) {
        CodedLeaf found = start;
        for (uint32_t& part : found.key) part = static_cast<uint32_t>(random.Bits());
        StepCodes(*kernels, found, h, kOptax);
        for (int64_t i = 0; i < found.size(); ++i) {
          const Element<double> x = found.At(i);
          r[i] += std::sqrt(x.v), m[i] += x.m, r_squares[i] += x.v, m_squares[i] += x.m * x.m;
        }
      }
      CodedLeaf after = start;
      StepCodes(*kernels, after, h, kOptax);
      for (int64_t i = 0; i < start.size(); ++i) {
        const Levels levels = after.LevelsOf(after.GroupOf(i));  // the same with all keys
        const Element<double> exact =
            Reference(start.At(i), Rounded<double>(h), kOptax, true, 0.0, AsDefined()).value;
        const double exact_r = std::max(std::sqrt(exact.v), levels.lowest);
        low += exact_r > std::sqrt(exact.v);
        auto check = [&](const char* name, double sum, double squares, double y, double level) {
          const double mean = sum / kKeys, variance = squares / kKeys - mean * mean;
          // Five standard errors; or five times in all another level, which may be rare.
          const double error = std::sqrt(std::max(variance, 0.0) / kKeys) + level / kKeys;
          CHECK(std::fabs(mean - y) <= 5 * error + 1e-6 * exact_r, "%s: %s is %g, expected %g",
                kernels->name, name, mean, y);
        };
        const double level = exact_r * (levels.Root(2) / levels.lowest - 1);
        check("r", r[i], r_squares[i], exact_r, level);
        check("m", m[i], m_squares[i], exact.m, level + levels.m_scale * exact_r / 87);
      }
    }
  }
  CHECK(low > 10);
}

// ---- The same bits ------------------------------------------------------------------------------

// Parameters and gradients of 16 bits give what the same numbers in float32 give, rounded once.
TEST(CodesOf16Bits) {
  const Dtype dtypes[] = {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16};
  uint64_t seed = 0;
  for (Dtype g_dtype : dtypes)
    for (Dtype p_dtype : dtypes)
      for (const Options& options : OptionsOfCodes())
        for (int64_t columns : {100, 300}) {
          CodedLeaf before(3, columns, 32, ++seed % 4 != 0, g_dtype, p_dtype);
          before.FillRandom(seed);
          CodedLeaf wide(3, columns, 32, before.decays);
          for (int place = 0; place < 6; ++place)
            for (int64_t i = 0; i < wide.arrays()[place]->size(); ++i)
              wide.arrays()[place]->Set(i, before.arrays()[place]->Get(i));
          for (const Kernels* kernels : EveryKernels()) {
            CodedLeaf found = before, expected = before, exact = wide;
            StepCodes(*kernels, found, {}, options);
            StepCodes(*kernels, exact, {}, options);
            for (int place = 1; place < 6; ++place)  // not of gradients
              for (int64_t i = 0; i < wide.arrays()[place]->size(); ++i)
                expected.arrays()[place]->Set(i, exact.arrays()[place]->Get(i));
            CheckSameCodes(found, expected, std::string(kernels->name) + ", " + Describe(options));
          }
        }
}

// A leaf in pieces, each of which has the groups that begin in it, gives the same bits as at once.
TEST(PiecesOfCodes) {
  uint64_t seed = 0;
  for (const auto& [rows, columns, group] : kShapes)
    for (const Options& options : OptionsOfCodes()) {
      CodedLeaf before(rows, columns, group);
      before.FillRandom(++seed);
      Random random(seed);
      const int64_t size = before.size();
      std::vector<std::pair<int64_t, int64_t>> pieces;
      for (int64_t at = 0, end; at < size; at = end)
        pieces.emplace_back(at, end = std::min(at + 1 + random.Below(400), size));
      for (const Kernels* kernels : EveryKernels()) {
        const std::string what = std::string(kernels->name) + ", " + Describe(options);
        CodedLeaf whole = before, found = before;
        auto step = [&](CodedLeaf& leaf, int64_t begin, int64_t end) {
          kernels->step_blockwise(leaf.leaf(), begin, end, Rounded<float>({}), options, kNorm);
        };
        step(whole, 0, size);
        step(found, size / 2, size / 2);
        CheckSameCodes(found, before, what + ", a piece of nothing");
        for (size_t i = 0; i < pieces.size(); i += 2)
          step(found, pieces[i].first, pieces[i].second);
        for (int64_t i = 0; i < size; ++i) {
          const int64_t first = i - i % columns % group;  // of its group
          auto has_first = [&](const auto& piece) { return first < piece.second; };
          const auto piece = std::find_if(pieces.begin(), pieces.end(), has_first);
          CodedLeaf& expected = (piece - pieces.begin()) % 2 ? before : whole;
          for (int place : {1, 2, 3})
            CHECK(found.arrays()[place]->SameBits(*expected.arrays()[place], i, i + 1),
                  "%s: element %d", what.c_str(), static_cast<int>(i));
        }
        for (size_t i = 1; i < pieces.size(); i += 2)
          step(found, pieces[i].first, pieces[i].second);
        CheckSameCodes(found, whole, what);
      }
    }
}

// Beside leaves of floats, on the threads of a pool: in blocks that begin and end within groups.
TEST(CodesInATree) {
  std::vector<CodedLeaf> before;
  for (const auto& [rows, columns, group] :
       {std::array<int64_t, 3>{70, 1000, 32}, {1, 40'000, 1024}, {300, 96, 32}, {90, 300, 64}}) {
    before.emplace_back(rows, columns, group);
    before.back().FillRandom(before.size());
  }
  LeafArrays floats(20'000, AllOf(Dtype::kFloat32));
  floats.FillRandom(1);
  for (const Kernels* kernels : EveryKernels()) {
    std::vector<CodedLeaf> expected = before, found = before;
    LeafArrays expected_floats = floats, found_floats = floats;
    auto step = [&](std::vector<CodedLeaf>& coded, LeafArrays& others, int64_t threads,
                    auto&& schedule) {
      std::vector<Leaf> leaves = {others.leaf(false)};
      for (CodedLeaf& leaf : coded) leaves.push_back(leaf.leaf());
      StepAll(*kernels, leaves, Rounded<float>({}), nullptr, kOptax, 0, threads, schedule);
    };
    for (CodedLeaf& leaf : expected) StepCodes(*kernels, leaf, {}, kOptax);
    RunStep(*kernels, expected_floats.leaf(false), 0, floats.size(), Rounded<float>({}), kOptax, 0);
    Pool pool(3);
    step(found, found_floats, 4, [&](Task task) { pool.Schedule(std::move(task)); });
    CheckSame(found_floats, expected_floats, kernels->name);
    for (size_t i = 0; i < found.size(); ++i) CheckSameCodes(found[i], expected[i], kernels->name);
  }
}

}  // namespace
}  // namespace adamx::test
