// Leaves whose moments are in 8 bits, and what their codes mean.
//
// Written from the table in adamx/base/blockwise.py, not from the kernel.

#ifndef ADAMX_TESTS_CODED_LEAF_H_
#define ADAMX_TESTS_CODED_LEAF_H_

#include <cmath>

#include "arrays.h"

namespace adamx::test {

constexpr int kTopCode = 254, kLostCode = 255, kNanCode = -128;
constexpr double kWidest = 2.2e-5;  // of the largest root of a group: the lowest level, at least

// The levels of one group.
class Levels {
 public:
  Levels(uint16_t m_scale, uint32_t v_scale)
      : choice(v_scale & 15), lowest(FromBits(v_scale & ~15u)),
        m_scale(FromBits(static_cast<uint32_t>(m_scale) << 16)), distance_(Distance(choice)) {}

  const uint32_t choice;
  const double lowest, m_scale;

  // Between two levels, in units of the last place; with 16 choices.
  static uint32_t Distance(uint32_t choice) {
    return (1 << 23) / (4 * ((4 + choice % 4) << (choice / 4)));
  }

  // The r of a code of v, and the m / r of a code of m.
  double Root(int k) const {
    return k == 0 ? 0 : lowest * FromBits((127u << 23) + static_cast<uint32_t>(k - 1) * distance_);
  }
  double Ratio(int q) const { return m_scale * (2 * q - std::min(std::max(q, -80), 80)) / 174; }

  // The highest level beside the lowest, with each choice.
  static double Reach(uint32_t choice) {
    return FromBits((127u << 23) + (kTopCode - 1) * Distance(choice));
  }

  // Between which codes a number is: the inverse of these two.
  double PlaceOfRoot(double r) const {
    if (r <= lowest) return 1;
    const int exponent = std::ilogb(r / lowest);
    const double bits = (exponent + std::ldexp(r / lowest, -exponent) - 1) * 0x1p23;
    return std::min<double>(1 + bits / distance_, kTopCode);
  }
  double PlaceOfRatio(double x) const {
    if (m_scale == 0) return 0;
    const double n = std::fabs(x) / m_scale * 174;
    return std::copysign(n <= 80 ? n : (n + 80) / 2, x);
  }

 private:
  static double FromBits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }

  const uint32_t distance_;
};

// The arrays of one leaf, each at an odd offset of its own: zeros, as before the first step.
struct CodedLeaf {
  int64_t columns, group, groups;  // groups of a row
  bool decays;
  GuardedArray g, p, m, v, m_scales, v_scales;
  uint32_t key[2] = {1, 2};

  CodedLeaf(int64_t rows, int64_t columns, int64_t group, bool decays = true,
            Dtype g_dtype = Dtype::kFloat32, Dtype p_dtype = Dtype::kFloat32)
      : columns(columns), group(group), groups((columns + group - 1) / group), decays(decays),
        g(g_dtype, rows * columns, 1), p(p_dtype, rows * columns, 9),
        m(Dtype::kInt8, rows * columns, 3), v(Dtype::kUint8, rows * columns, 5),
        m_scales(Dtype::kBfloat16, rows * groups, 1), v_scales(Dtype::kUint32, rows * groups, 3) {
    for (GuardedArray* array : arrays())
      for (int64_t i = 0; i < array->size(); ++i) array->Set(i, 0);
  }

  int64_t size() const { return g.size(); }
  int64_t scale_count() const { return m_scales.size(); }
  int64_t GroupOf(int64_t i) const { return i / columns * groups + i % columns / group; }
  Levels LevelsOf(int64_t group) const {
    return {m_scales.Bits16(group), static_cast<uint32_t>(v_scales.Get(group))};
  }

  Leaf leaf() {
    Leaf leaf;
    leaf.size = size(), leaf.columns = columns, leaf.group = group, leaf.decays = decays;
    leaf.g = g.array(), leaf.p = p.array(), leaf.m = m.array(), leaf.v = v.array();
    leaf.m_scales = reinterpret_cast<uint16_t*>(m_scales.data());
    leaf.v_scales = reinterpret_cast<uint32_t*>(v_scales.data());
    std::memcpy(leaf.key, key, sizeof key);
    return leaf;
  }

  Element<double> At(int64_t i) const {
    const Levels levels = LevelsOf(GroupOf(i));
    const int k = static_cast<int>(v.Get(i)), q = static_cast<int>(m.Get(i));
    if (k == kLostCode) {
      const double lost = q == kNanCode ? std::nan("") : std::numeric_limits<double>::infinity();
      return {g.Get(i), q == 0 ? 0 : std::copysign(lost, q), lost, 0, p.Get(i)};
    }
    const double r = levels.Root(k);
    return {g.Get(i), r * levels.Ratio(q), r * r, 0, p.Get(i)};
  }

  // Four with an element for each parameter, all but the first of which change; two with scales.
  std::array<GuardedArray*, 6> arrays() { return {&g, &p, &m, &v, &m_scales, &v_scales}; }

  // Codes, gradients and parameters. Of some groups all moments are zero, or all gradients, or
  // both. Other numbers are of about `size`, and differ within a group as levels do.
  void FillRandom(uint64_t seed, double size = 1) {
    Random random(seed);
    for (int64_t i = 0; i < scale_count(); ++i) {
      const float lowest = static_cast<float>(size * std::exp2(random.Between(-8, 0)));
      uint32_t bits;
      std::memcpy(&bits, &lowest, sizeof bits);
      const uint32_t choice = static_cast<uint32_t>(random.Below(16));
      v_scales.Set(i, random.Below(8) ? (bits & ~15u) | choice : 0);
      m_scales.Set(i, random.Between(0.01, 5));
    }
    for (int64_t i = 0; i < this->size(); ++i) {
      const Levels levels = LevelsOf(GroupOf(i));
      const int64_t code = random.Below(kTopCode + 1);
      v.Set(i, levels.lowest == 0 || i % 11 == 0 ? 0 : static_cast<double>(code));
      m.Set(i, static_cast<double>(random.Below(255) - 127));
      const double of_g = size * std::exp2(random.Between(-6, 6));
      const bool is_zero = Random(seed + static_cast<uint64_t>(GroupOf(i))).Below(8) == 0;
      g.Set(i, is_zero ? 0 : random.Below(2) ? of_g : -of_g);
      p.Set(i, std::max(size, 1.0) * random.Between(-1, 1));  // whose decay may be a gradient
    }
  }
};

// Checks that two leaves have the same bits, and that nothing around them was touched.
inline void CheckSameCodes(CodedLeaf& found, CodedLeaf& expected, const std::string& what) {
  constexpr const char* kNames[] = {"g", "p", "m", "v", "scales of m", "scales of v"};
  for (int place = 0; place < 6; ++place) {
    const GuardedArray &x = *found.arrays()[place], &y = *expected.arrays()[place];
    CHECK(x.GuardsIntact(), "%s: %s", what.c_str(), kNames[place]);
    if (x.SameBits(y, 0, x.size())) continue;
    int64_t i = 0;
    while (x.SameBits(y, i, i + 1)) ++i;
    CHECK(false, "%s: %s[%d] is %.17g, expected %.17g", what.c_str(), kNames[place],
          static_cast<int>(i), x.Get(i), y.Get(i));
  }
}

}  // namespace adamx::test

#endif  // ADAMX_TESTS_CODED_LEAF_H_
