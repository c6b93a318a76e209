// One step of Adam on a leaf whose moments are in 8 bits.

#include "codes.h"

namespace adamx::ADAMX_ISA {
namespace {

// Step the parameters.
template <bool kDecoupled, class Tile>
ADAMX_INLINE void StepParameters(int64_t n, int64_t count, Tile& tile, float* __restrict p,
                                 const Scalars<float>& scalars, const Factors<float>& f) {
  const float *__restrict m = tile.m, *__restrict v = tile.v, *__restrict r = tile.r;
  const Scalars<float> s = scalars;
  const float half_m = f.half_m, after = f.after_maximum, half_root = 0.5f * Sqrt(after);
  for (int64_t j = 0; j < count; ++j) {
    const float unit = tile.unit[j], eps_root = s.eps_root * unit * unit;
    // Not 0, which m may be; and NaN if eps is.
    const float half_eps = 0.5f * Max(kSmallestEps, s.eps * unit);
    auto step = [&](int64_t i, float half_denominator) {
      float direction = m[i] * half_m / half_denominator;
      if (kDecoupled) direction = MultiplyAdd(s.weight_decay, p[i], direction);
      p[i] = MultiplyAdd(s.rate, direction, p[i]);
    };
    if (s.eps_root == 0) {
      for (int64_t i = j * n; i < (j + 1) * n; ++i) step(i, MultiplyAdd(r[i], half_root, half_eps));
    } else {
      for (int64_t i = j * n; i < (j + 1) * n; ++i)
        step(i, MultiplyAdd(0.5f, Sqrt(v[i] * after + eps_root), half_eps));
    }
  }
}

// Where a moment is infinite or NaN, make both 0 and put the code of m into `lost`, which is 1
// elsewhere; and find the extremes of the others.
template <class Tile>
void TakeOutLost(int64_t n, int64_t count, Tile& tile, int32_t* lost) {
  for (int64_t j = 0; j < count; ++j) {
    tile.largest[j] = 0;
    tile.smallest[j] = kInfinity;
    for (int64_t i = j * n; i < (j + 1) * n; ++i) {
      const float m = tile.m[i], r = tile.r[i];
      if (IsFinite(m) && IsFinite(r)) {
        lost[i] = 1;
        tile.largest[j] = Max(tile.largest[j], Bits(r));
        tile.smallest[j] = Min(tile.smallest[j], r == 0 ? kInfinity : Bits(r));
      } else {
        lost[i] = IsNan(m) || IsNan(r) ? kNanM : IsFinite(m) ? 0 : Bits(m) < 0 ? -kMaxM : kMaxM;
        tile.m[i] = tile.r[i] = 0;
      }
    }
  }
}

// Step a tile: its parameters, codes and scales.
template <bool kFromMeans, class Tile>
ADAMX_INLINE void StepTile(int64_t n, int64_t count, const float* g, float* p, Tile& tile,
                           const Scalars<float>& s, const Factors<float>& factors, bool decoupled,
                           uint32_t begin, const uint32_t key[2]) {
  const bool is_finite = FindUnits(n, count, g, tile);
  const bool was_finite = Update<kFromMeans, false>(n, count, g, tile, s);
  const bool has_lost = !is_finite || !was_finite || !IsFinite(s.b1 + s.b2);
  if (has_lost) Update<kFromMeans, true>(n, count, g, tile, s);
  if (decoupled) {
    StepParameters<true>(n, count, tile, p, s, factors);
  } else {
    StepParameters<false>(n, count, tile, p, s, factors);
  }
  int32_t lost[kMaxGroup];
  if (has_lost) TakeOutLost(n, count, tile, lost);
  ChooseLevels(tile, Sqrt(s.b2));
  Encode(n, count, tile, begin, key[0], key[1]);
  for (int64_t i = 0; has_lost && i < n * count; ++i) {
    if (lost[i] == 1) continue;
    tile.v_codes[i] = kLostV;
    tile.m_codes[i] = lost[i];
  }
}

// What StepGroups passes on.
struct Work {
  const Leaf& leaf;
  const Scalars<float>& s;
  const Options& options;
  const Factors<float> factors;
  float norm;
};

// Step `count` groups of n elements each that begin at element `at`, with group `number`.
template <bool kFromMeans, class Tile>
ADAMX_INLINE void StepStretch(const Work& work, int64_t n, int64_t count, int64_t at,
                              int64_t number, Tile& tile) {
  const Leaf& leaf = work.leaf;
  const int64_t size = n * count;
  int8_t* __restrict m_codes = static_cast<int8_t*>(leaf.m.data) + at;
  uint8_t* __restrict v_codes = static_cast<uint8_t*>(leaf.v.data) + at;
  for (int64_t i = 0; i < size; ++i) tile.m_codes[i] = m_codes[i];
  for (int64_t i = 0; i < size; ++i) tile.v_codes[i] = v_codes[i];
  for (int64_t j = 0; j < count; ++j) {
    tile.m_scales[j] = static_cast<int32_t>(uint32_t{leaf.m_scales[number + j]} << 16);
    tile.v_scales[j] = static_cast<int32_t>(leaf.v_scales[number + j]);
  }

  const bool decays_gradient = leaf.decays && !work.options.decoupled;
  const float* g = Load(leaf.g, at, size, tile.g);
  float* p = LoadWeights(leaf, at, size, tile.p);
  if (work.options.clip || decays_gradient) {
    if (g != tile.g) __builtin_memcpy(tile.g, g, size * sizeof(float));
    Prepare(size, tile.g, p, work.s, work.options.clip, work.norm, decays_gradient);
    g = tile.g;
  }
  StepTile<kFromMeans>(n, count, g, p, tile, work.s, work.factors,
                       leaf.decays && work.options.decoupled, static_cast<uint32_t>(at), leaf.key);
  StoreWeights(leaf, at, size, p);
  for (int64_t j = 0; j < count; ++j) {
    const uint32_t m_scale = static_cast<uint32_t>(tile.m_scales[j]);
    leaf.m_scales[number + j] = static_cast<uint16_t>(m_scale >> 16);
    leaf.v_scales[number + j] = static_cast<uint32_t>(tile.v_scales[j]);
  }
  for (int64_t i = 0; i < size; ++i) m_codes[i] = static_cast<int8_t>(tile.m_codes[i]);
  for (int64_t i = 0; i < size; ++i) v_codes[i] = static_cast<uint8_t>(tile.v_codes[i]);
}

// Step the groups whose first element is one of [begin, end).
template <bool kFromMeans>
void StepGroups(const Work& work, int64_t begin, int64_t end) {
  const int64_t group = work.leaf.group;
  // Where groups fill the rows, they follow one another as in a single row.
  const bool is_full = work.leaf.columns % group == 0;
  const int64_t columns = is_full ? work.leaf.size : work.leaf.columns;
  const int64_t groups = (columns + group - 1) / group;  // of a row
  Tile<kGroup * kGroups> usual;
  Tile<kMaxGroup> other;
  int64_t row = begin / columns, column = (begin % columns + group - 1) / group * group;
  while (true) {
    if (column >= columns) {
      ++row;
      column = 0;
    }
    const int64_t at = row * columns + column, number = row * groups + column / group;
    if (at >= end) return;
    // Some whole groups of the usual size, or one group.
    const int64_t starting = Min((end - at + group - 1) / group, (columns - column) / group);
    if (group == kGroup && starting >= kGroups) {
      StepStretch<kFromMeans>(work, kGroup, kGroups, at, number, usual);
      column += kGroups * kGroup;
    } else {
      StepStretch<kFromMeans>(work, Min(columns - column, group), 1, at, number, other);
      column += group;
    }
  }
}

void StepBlockwise(const Leaf& leaf, int64_t begin, int64_t end, const Scalars<float>& s,
                   const Options& options, double norm) {
  const Work work = {leaf, s, options, Factors<float>(s, options), static_cast<float>(norm)};
  if (s.b1 >= 0.5f && s.b2 >= 0.5f) {
    StepGroups<true>(work, begin, end);
  } else {
    StepGroups<false>(work, begin, end);
  }
}

}  // namespace
}  // namespace adamx::ADAMX_ISA
