// Moments in 8 bits beside NaN, infinity and zeros, and when there is no gradient for long.

#include <limits>

#include "coded_leaf.h"
#include "step.h"

namespace adamx::test {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();

void StepCodes(const Kernels& kernels, CodedLeaf& leaf, const Scalars<float>& s,
               const Options& options = kOptax) {
  StepAll(kernels, {leaf.leaf()}, s, nullptr, options, 0, 1, [](auto) {});
}

bool Same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// What is infinite or NaN is coded as such, and the other elements of its group do not notice.
TEST(LostElements) {
  const struct { double g; int v, m; } examples[] = {
      {kNotANumber, 0, 0}, {kInfinite, 0, 0}, {-kInfinite, 0, 0}, {1, 255, -128}, {1, 255, 127},
      {0, 255, -127}, {kInfinite, 255, 127}, {-kInfinite, 255, 127}, {kNotANumber, 255, 0},
      {0, 255, 0}, {-1, 255, 0}};
  for (const Kernels* kernels : EveryKernels())
    for (const Hyperparameters& h : {Hyperparameters{}, Hyperparameters{0.3L, 0.4L}})
      for (const auto& [columns, group] :
           {std::pair<int64_t, int64_t>{512, 32}, {100, 32}, {100, 8}, {256, 1024}})
        for (const auto& example : examples) {
          CodedLeaf without(2, columns, group, false);
          without.FillRandom(1);
          if (group == 8)  // whose squares overflow, beside moments that are no larger than before
            for (int64_t i = 0; i < without.size(); ++i)
              without.g.Set(i, std::ldexp(without.g.Get(i), 100));
          std::vector<int64_t> lost;
          for (int64_t i = 3; i < without.size(); i += 37) lost.push_back(i);
          for (int64_t i : lost)
            for (GuardedArray* array : {&without.g, &without.v, &without.m}) array->Set(i, 0);
          CodedLeaf found = without;
          for (int64_t i : lost)
            found.g.Set(i, example.g), found.v.Set(i, example.v), found.m.Set(i, example.m);
          const CodedLeaf before = found;
          StepCodes(*kernels, found, Rounded<float>(h));
          StepCodes(*kernels, without, Rounded<float>(h));
          for (int64_t i : lost) {
            const auto exact = Reference(before.At(i), Rounded<double>(h), kOptax, false, 0.0,
                                         AsInNumerics()).value;
            const bool is_nan = std::isnan(exact.m) || std::isnan(exact.v);
            const double m = is_nan ? kNotANumber : std::isfinite(exact.m) ? 0 : exact.m;
            const Element<double> x = found.At(i);
            CHECK(found.v.Get(i) == kLostCode && Same(x.m, m) && Same(x.p, exact.p),
                  "%s: of g %g and codes %d, %d: m %g, v %g, p %g, expected m %g and p %g",
                  kernels->name, example.g, example.v, example.m, x.m, x.v, x.p, m, exact.p);
            for (int place : {0, 1, 2, 3})
              found.arrays()[place]->Set(i, without.arrays()[place]->Get(i));
          }
          CheckSameCodes(found, without, std::string(kernels->name) + ", groups of " +
                                             std::to_string(group) + " with g " +
                                             std::to_string(example.g));
        }
}

// With a rate of decay or an epsilon that is NaN, nothing looks like a number.
TEST(RatesThatAreNotNumbers) {
  for (const Kernels* kernels : EveryKernels())
    for (int which : {0, 1, 2}) {
      Hyperparameters h;
      (which == 0 ? h.b1 : which == 1 ? h.b2 : h.eps) = std::nanl("");
      CodedLeaf found(2, 300, 32);
      found.FillRandom(1);
      for (int64_t i = 0; i < found.size(); ++i) found.g.Set(i, 1);
      StepCodes(*kernels, found, Rounded<float>(h));
      for (int64_t i = 0; i < found.size(); ++i) {
        CHECK(std::isnan(found.p.Get(i)), "%s, %d: p %g", kernels->name, which, found.p.Get(i));
        CHECK(which == 2 || (found.v.Get(i) == kLostCode && found.m.Get(i) == kNanCode),
              "%s, %d: codes %g, %g", kernels->name, which, found.v.Get(i), found.m.Get(i));
      }
    }
}

// Of zeros nothing comes but the decay of weights; and a number far below its group makes no step.
TEST(ZeroMoments) {
  Hyperparameters h;
  h.eps = h.eps_root = 0;
  for (const Kernels* kernels : EveryKernels())
    for (double largest : {0.0, 1e-30, 1.0, 1e30})
      for (const Options& options : {kOptax, kKeras, With(kTorch, false, false, false)}) {
        CodedLeaf found(1, 64, 32, false);
        for (int64_t i = 0; i < found.size(); ++i) found.p.Set(i, 1);
        found.g.Set(5, largest);
        found.g.Set(6, largest * 1e-25);
        StepCodes(*kernels, found, Rounded<float>(h), options);
        for (int64_t i = 0; i < found.size(); ++i) {
          const bool moves = i == 5 && largest > 0;
          CHECK((found.p.Get(i) != 1) == moves && (found.v.Get(i) != 0) == moves &&
                    (found.m.Get(i) != 0) == moves && std::isfinite(found.p.Get(i)),
                "%s: element %d beside %g", kernels->name, static_cast<int>(i), largest);
        }
        CHECK(found.v_scales.Get(1) == 0 && found.m_scales.Get(1) == 0);
      }
}

// ---- No gradient for long -----------------------------------------------------------------------

// Codes of v stay as they are, and their scales decay as v does. So does m, whose largest ratio is
// always the highest level, until it is 0.
TEST(CodesWithoutGradients) {
  const Hyperparameters h;
  const double b1 = static_cast<double>(h.b1), decay = std::sqrt(static_cast<double>(h.b2));
  for (const Kernels* kernels : EveryKernels()) {
    CodedLeaf found(2, 160, 32);
    found.FillRandom(1);
    StepCodes(*kernels, found, Rounded<float>(h));
    for (int64_t i = 0; i < found.size(); ++i) found.g.Set(i, 0);
    StepCodes(*kernels, found, Rounded<float>(h));  // which drops levels that are idle
    int lowered = 0, changed = 0;
    for (int n = 1; n <= 900; ++n) {
      const CodedLeaf before = found;
      found.key[0] = static_cast<uint32_t>(n) * 0x9e3779b9u;
      StepCodes(*kernels, found, Rounded<float>(h));
      std::vector<double> largest(found.scale_count());
      std::vector<bool> is_lowered(found.scale_count());
      for (int64_t group = 0; group < found.scale_count(); ++group) {
        const Levels levels = found.LevelsOf(group), old = before.LevelsOf(group);
        if (old.lowest == 0) continue;
        const double moved = levels.lowest / (old.lowest * decay);
        // The smallest root may become less than the lowest level, by what is rounded.
        is_lowered[group] = std::fabs(moved - 0.995) < 2e-6;
        lowered += is_lowered[group];
        CHECK((std::fabs(moved - 1) < 2e-6 && levels.choice == old.choice) || is_lowered[group],
              "%s, step %d: levels from %g after %g", kernels->name, n, levels.lowest, old.lowest);
      }
      for (int64_t i = 0; i < found.size(); ++i) {
        const int64_t group = found.GroupOf(i);
        changed += !is_lowered[group] && !found.v.SameBits(before.v, i, i + 1);
        largest[group] = std::max(largest[group], std::fabs(found.m.Get(i)));
      }
      for (int64_t group = 0; group < found.scale_count(); ++group) {
        const double scale = found.LevelsOf(group).m_scale, old = before.LevelsOf(group).m_scale;
        CHECK(scale == 0 ? largest[group] == 0 && old < 1e-30 : largest[group] >= 126,
              "%s, step %d: largest code %g, scale %g", kernels->name, n, largest[group], scale);
        CHECK(scale == 0 || std::fabs(scale / old - b1 / decay) < 0.03,
              "%s, step %d: scale of m %g after %g", kernels->name, n, scale, old);
      }
    }
    std::printf("%s: %d scales lowered, %d codes changed\n", kernels->name, lowered, changed);
    CHECK(lowered < 50 && changed < 50);
    for (int64_t i = 0; i < found.scale_count(); ++i) CHECK(found.m_scales.Get(i) == 0);
  }
}

// A root on the highest level is never rounded up to the code of what is infinite.
TEST(HighestLevel) {
  for (const Kernels* kernels : EveryKernels()) {
    int64_t highest = 0;
    for (uint32_t n = 0; n < 4000; ++n) {
      CodedLeaf found(1, 256, 32);
      for (int64_t i = 0; i < found.scale_count(); ++i)  // with choice 3, where 253.0 is rounded up
        found.v_scales.Set(i, (127u << 23) + 16 * 7919 * n % (1u << 23) + 3);
      for (int64_t i = 0; i < found.size(); ++i) found.v.Set(i, i % 32 ? kTopCode : 1);
      found.key[0] = n * 0x9e3779b9u;
      StepCodes(*kernels, found, Rounded<float>({}));
      for (int64_t i = 0; i < found.size(); ++i) {
        highest += found.v.Get(i) == kTopCode;
        CHECK(found.v.Get(i) != kLostCode, "%s, %d", kernels->name, static_cast<int>(n));
      }
    }
    CHECK(highest > 400'000, "%s: %d", kernels->name, static_cast<int>(highest));
  }
}

// v decays to 0, and does not stop or become anything else on the way; whether subnormal numbers
// are flushed to 0, as in StepAll, or not.
TEST(CodesDecayToZero) {
  Hyperparameters h;
  h.b1 = 0.3L, h.b2 = 0.5L, h.eps = h.eps_root = 0;
  for (const Kernels* kernels : EveryKernels())
    for (bool flushes : {false, true}) {
      CodedLeaf found(2, 160, 32, false);
      found.FillRandom(1);
      for (int n = 0; n < 400; ++n) {
        const CodedLeaf before = found;
        if (flushes) {
          StepCodes(*kernels, found, Rounded<float>(h));
        } else {
          kernels->step_blockwise(found.leaf(), 0, found.size(), Rounded<float>(h), kOptax, 0);
        }
        if (n == 0)
          for (int64_t i = 0; i < found.size(); ++i) found.g.Set(i, 0);
        for (int64_t i = 0; i < found.size() && n > 0; ++i) {
          const double v = found.At(i).v, old = before.At(i).v;
          CHECK(v <= old && std::isfinite(found.p.Get(i)), "%s, step %d: v %g after %g",
                kernels->name, n, v, old);
        }
      }
      for (int64_t i = 0; i < found.size(); ++i)
        CHECK(found.v.Get(i) == 0 && found.m.Get(i) == 0, "%s: codes %g, %g", kernels->name,
              found.v.Get(i), found.m.Get(i));
      for (int64_t i = 0; i < found.scale_count(); ++i)
        CHECK(found.v_scales.Get(i) == 0 && found.m_scales.Get(i) == 0, "%s: scales %g, %g",
              kernels->name, found.v_scales.Get(i), found.m_scales.Get(i));
    }
}

}  // namespace
}  // namespace adamx::test
