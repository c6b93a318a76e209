// The codes of moments in 8 bits: from codes to updated moments, and back to codes.
// base/blockwise.py has the same in JAX, and says what the codes mean.
//
// Compiled like adam.h. A tile of some groups goes through loops that are short in operations and
// long in elements, so that a processor works on several elements at a time. They are written to be
// vectorised: they have no branch, and numbers are compared by their patterns, as integers.

#include "adam.h"

// So that the number of elements is a constant where a caller knows it.
#define ADAMX_INLINE inline __attribute__((always_inline))

namespace adamx::ADAMX_ISA {
namespace {

constexpr int32_t kTop = 254;  // the code of the highest level of v
constexpr int32_t kLostV = 255, kNanM = -128, kMaxM = 127;  // where a moment is infinite or NaN
constexpr int32_t kKnee = 80, kReachM = 2 * kMaxM - kKnee;
constexpr float kBelow = 0.995f, kAbove = 1.05f, kFloor = 2.2e-5f;
constexpr int32_t kOne = 127 << 23, kInfinity = 255 << 23, kNan = kInfinity | 1;  // as patterns
constexpr int32_t kSign = INT32_MIN;
constexpr float kSmallestEps = 0x1p-100f;
constexpr int32_t kSmallestRatio = 27 << 23;  // 2^-100, as a pattern
constexpr int32_t kShort = 64;  // of the highest level, lest rounding goes beyond it

inline int32_t Bits(float x) { return static_cast<int32_t>(BitsOfFloat(x)); }
inline float Float(int32_t bits) { return FloatOfBits(static_cast<uint32_t>(bits)); }
inline int32_t Size(float x) { return Bits(x) & 0x7fffffff; }  // of |x|
inline bool IsFinite(float x) { return Size(x) < kInfinity; }
inline bool IsNan(float x) { return Size(x) > kInfinity; }
inline int32_t Max(int32_t a, int32_t b) { return a > b ? a : b; }
inline int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }
inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
inline float Max(float a, float b) { return a > b ? a : b; }

inline float Uniform(uint32_t bits) { return FloatOfBits(bits << 7 | kOne); }  // in [1, 2)

// The distance of the levels of v, in units of the last place, with `choice` (j).
inline int32_t Distance(int32_t choice) {
  return static_cast<int32_t>(0x1p21f / static_cast<float>((4 + (choice & 3)) << (choice >> 2)));
}

// The power of two by which numbers of this size, given as a pattern, become about 1.
inline float UnitFor(int32_t largest) {
  const int32_t exponent = Min(Max(254 - (largest >> 23), 1), 253);
  return Float((largest == 0 ? 127 : exponent) << 23);
}

constexpr int64_t kGroup = 32;  // the usual size of a group, which the compiler knows
constexpr int64_t kGroups = 8;  // how many of them are in a tile; or one of another size

// kRoom: the most elements. The smaller it is, the better a tile fits the first-level cache.
template <int64_t kRoom>
struct Tile {
  // One for each element. `r` is the root of v, `ratio` is m / r.
  alignas(64) float g[kRoom], p[kRoom], m[kRoom], v[kRoom], r[kRoom], ratio[kRoom];
  alignas(64) int32_t m_codes[kRoom], v_codes[kRoom];
  alignas(64) uint32_t random[kRoom];

  // One for each group; see _Levels in blockwise.py. Loops see all kGroups, used or not.
  alignas(64) int32_t m_scales[kGroups] = {}, v_scales[kGroups] = {};  // patterns of float
  alignas(64) float unit[kGroups] = {}, lowest[kGroups] = {}, per_lowest[kGroups] = {};
  alignas(64) float per_distance[kGroups] = {}, m_factor[kGroups] = {};
  alignas(64) int32_t choice[kGroups] = {}, distance[kGroups] = {};
  alignas(64) int32_t largest[kGroups] = {}, smallest[kGroups] = {};
  alignas(64) int32_t is_used[kGroups] = {};  // -1, or 0 where the state cannot hold the scale
};

// Find the units of each group, in which its numbers are about 1 or less, and its levels there.
// Return whether all gradients are finite.
template <class Tile>
ADAMX_INLINE bool FindUnits(int64_t n, int64_t count, const float* __restrict g, Tile& tile) {
  int32_t worst = 0;
  for (int64_t j = 0; j < count; ++j) {
    int32_t largest = 0;
    for (int64_t i = j * n; i < (j + 1) * n; ++i) largest = Max(largest, Size(g[i]));
    tile.largest[j] = largest;
    worst = Max(worst, largest);
  }
  if (worst >= kInfinity) {
    for (int64_t j = 0; j < count; ++j) {
      tile.largest[j] = 0;
      for (int64_t i = j * n; i < (j + 1) * n; ++i)
        tile.largest[j] = Max(tile.largest[j], IsFinite(g[i]) ? Size(g[i]) : 0);
    }
  }
  for (int64_t j = 0; j < kGroups; ++j) {
    const int32_t scale = tile.v_scales[j];
    const float lowest = Float(scale & ~15);
    tile.choice[j] = scale & 15;
    tile.distance[j] = Distance(scale & 15);
    const float highest = lowest * Float(kOne + (kTop - 1) * tile.distance[j]);
    tile.unit[j] = UnitFor(Max(tile.largest[j], Bits(highest)));
    tile.lowest[j] = lowest * tile.unit[j];
    tile.m_factor[j] = Float(tile.m_scales[j]) * (1.0f / kReachM);
  }
  return worst < kInfinity;
}

// Decode the moments and update them, in those units, and find the extremes of r. Return whether
// all codes are of finite numbers; otherwise kLost is needed.
template <bool kFromMeans, bool kLost, class Tile>
ADAMX_INLINE bool Update(int64_t n, int64_t count, const float* __restrict g, Tile& tile,
                         const Scalars<float>& scalars) {
  float *__restrict m = tile.m, *__restrict v = tile.v, *__restrict r = tile.r;
  const int32_t *__restrict m_codes = tile.m_codes, *__restrict v_codes = tile.v_codes;
  float* __restrict x_of = tile.ratio;
  const Scalars<float> s = scalars;
  int32_t largest_code = 0;
  for (int64_t j = 0; j < count; ++j) {
    const float unit = tile.unit[j], lowest = tile.lowest[j], m_factor = tile.m_factor[j];
    const int32_t distance = tile.distance[j];
    for (int64_t i = j * n; i < (j + 1) * n; ++i) {
      const int32_t k = v_codes[i], q = m_codes[i];
      const float level = lowest * Float(kOne + (k - 1) * distance);
      float old_r = k == 0 ? 0 : level;
      float old_m = static_cast<float>(2 * q - Min(Max(q, -kKnee), kKnee)) * m_factor * old_r;
      if (kLost) {
        const int32_t infinite = q == 0 ? 0 : kInfinity | (q & kSign);
        old_m = Float(k != kLostV ? Bits(old_m) : q == kNanM ? kNan : infinite);
        old_r = Float(k != kLostV ? Bits(old_r) : q == kNanM ? kNan : kInfinity);
      }
      largest_code = Max(largest_code, k);
      m[i] = old_m;
      r[i] = old_r;
      x_of[i] = g[i] * unit;
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    int32_t largest = 0, smallest = kInfinity;
    for (int64_t i = j * n; i < (j + 1) * n; ++i) {
      const float old_m = m[i], old_r = r[i], x = x_of[i], old_v = old_r * old_r;
      float new_m, new_v;
      if (kFromMeans) {
        new_m = MovingAverage<true>(old_m, x, s.b1, s.one_minus_b1);
        new_v = kLost ? MeanSquare<true>(old_v, x, s.b2, s.one_minus_b2)
                      : MultiplyAdd(s.one_minus_b2, MultiplyAdd(x, x, -old_v), old_v);
      } else {
        new_m = s.b1 >= 0.5f ? MovingAverage<true>(old_m, x, s.b1, s.one_minus_b1)
                             : MovingAverage<false>(old_m, x, s.b1, s.one_minus_b1);
        new_v = s.b2 >= 0.5f ? MeanSquare<true>(old_v, x, s.b2, s.one_minus_b2)
                             : MeanSquare<false>(old_v, x, s.b2, s.one_minus_b2);
      }
      m[i] = new_v == 0 ? 0 : new_m;  // beside numbers 2^63 as large
      v[i] = new_v;
      const float root = Sqrt(new_v);
      r[i] = root;
      largest = Max(largest, Bits(root));
      smallest = Min(smallest, Bits(root) == 0 ? kInfinity : Bits(root));
    }
    tile.largest[j] = largest;
    tile.smallest[j] = smallest;
  }
  return largest_code != kLostV;
}

// Keep the levels of each group, which decay as v does, or choose new ones.
template <class Tile>
ADAMX_INLINE void ChooseLevels(Tile& tile, float decay) {
  for (int64_t j = 0; j < kGroups; ++j) {
    const float largest = Float(tile.largest[j]), smallest = Float(tile.smallest[j]);
    const float first = Float(Min(tile.smallest[j], tile.largest[j])) * kBelow;
    const float from = Max(first, largest * kFloor);
    const float lowest = Float((Bits(from) + 8) & ~15);
    const int32_t reach = Bits(largest * kAbove / (lowest == 0 ? 1.0f : lowest)) - kOne;
    const float levels = (kTop - 1) * 0x1p21f / static_cast<float>(Max(reach, 1));
    // Of a float: its exponent and two bits of its mantissa.
    const int32_t choice = Min(Max((Bits(levels) >> 21) - (129 << 2), 0), 15);
    const float old = tile.lowest[j] * decay;
    const float highest = old * Float(kOne + (kTop - 1) * tile.distance[j]);
    const float least = Max(smallest, largest * (2 * kFloor));
    const int32_t fits = -((largest <= highest) & (choice <= tile.choice[j] + 1) & (old <= least));
    const int32_t kept_bits = (fits & Bits(old)) | (~fits & Bits(from));
    const int32_t kept_choice = (fits & tile.choice[j]) | (~fits & choice);
    const float kept = Float((kept_bits + 8) & ~15), scale = kept / tile.unit[j];
    const int32_t is_used = -((scale > 0) & (kept > 0));
    tile.is_used[j] = is_used;
    tile.lowest[j] = Float((is_used & Bits(kept)) | (~is_used & kOne));
    tile.per_lowest[j] = 1 / tile.lowest[j];
    tile.distance[j] = Distance(kept_choice);
    tile.per_distance[j] = 1 / static_cast<float>(tile.distance[j]);
    tile.v_scales[j] = ((Bits(scale) & ~15) | kept_choice) & is_used;
  }
}

// Round r and m / r to codes at random. The moments are finite.
template <class Tile>
ADAMX_INLINE void Encode(int64_t n, int64_t count, Tile& tile, uint32_t begin, uint32_t key0,
                         uint32_t key1) {
  const float *__restrict m = tile.m, *__restrict r = tile.r;
  float* __restrict ratio = tile.ratio;
  int32_t *__restrict m_codes = tile.m_codes, *__restrict v_codes = tile.v_codes;
  uint32_t* __restrict bits = tile.random;
  for (int32_t i = 0; i < n * count; ++i)
    bits[i] = HashedBits(begin + static_cast<uint32_t>(i), key0, key1);
  for (int64_t j = 0; j < count; ++j) {
    const float lowest = tile.lowest[j];
    int32_t largest = 0;
    for (int64_t i = j * n; i < (j + 1) * n; ++i) {
      const float found = m[i] / (r[i] > lowest ? r[i] : lowest);
      ratio[i] = found;
      largest = Max(largest, Size(found));
    }
    tile.largest[j] = largest & tile.is_used[j];
  }
  for (int64_t j = 0; j < kGroups; ++j) {
    const int32_t largest = tile.largest[j] < kSmallestRatio ? 0 : tile.largest[j];
    tile.m_scales[j] = (largest + 0xffff) & ~0xffff;  // rounded up to bfloat16
    const float scale = Float(tile.m_scales[j]);
    const float levels = tile.is_used[j] == 0 ? 0 : kReachM * 0x1p15f * (1 - 0x1p-21f);
    tile.m_factor[j] = levels / (scale == 0 ? 1.0f : scale);
  }
  for (int64_t j = 0; j < count; ++j) {
    const float factor = tile.m_factor[j], per_lowest = tile.per_lowest[j];
    const float per_distance = tile.per_distance[j];
    const int32_t is_used = tile.is_used[j], highest = (kTop - 1) * tile.distance[j] - kShort;
    for (int64_t i = j * n; i < (j + 1) * n; ++i) {
      const uint32_t random = bits[i];
      const int32_t above = Bits(r[i] * per_lowest) - kOne;  // the lowest level
      const int32_t within = Min(Max(above, 0), highest);
      const float k = static_cast<float>(within) * per_distance + Uniform(random >> 16);
      v_codes[i] = (r[i] == 0 ? 0 : static_cast<int32_t>(k)) & is_used;

      const int32_t y = static_cast<int32_t>(ratio[i] * factor);  // in 2^-15
      const int32_t clipped = Min(Max(y, -(kKnee << 15)), kKnee << 15);
      m_codes[i] = (y + clipped + static_cast<int32_t>(random & 0xffffu)) >> 16;
    }
  }
}

}  // namespace
}  // namespace adamx::ADAMX_ISA
