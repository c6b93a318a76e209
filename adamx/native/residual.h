// A weight of float32 as a number p of 16 bits, and an integer r of 8 or 16 bits: what p lacks.
// base/residual.py has the same in JAX, bit for bit, and says what the integers mean.
//
// Compiled like adam.h.

#include "numbers.h"

namespace adamx::ADAMX_ISA {
namespace {

// How the patterns of a dtype follow from those of float, by whether it is float16 or bfloat16.
template <bool kIsHalf>
struct Form {
  static constexpr int32_t kLost = kIsHalf ? 13 : 16;  // bits of the mantissa
  // The pattern of a normal number is its own, shifted by kLost, and this.
  static constexpr int32_t kBias = kIsHalf ? 112 << 23 : 0;
  static constexpr int32_t kInfinite = kIsHalf ? 0x7c00 : 0x7f80;
  static constexpr int32_t kNotANumber = kIsHalf ? 0x7e00 : 0x7fc0;
  static constexpr int32_t kConstant = 0x0400;  // where the constant spacing of float16 ends
};

constexpr int32_t kInfiniteFloat = 0x7f800000;

// In such integers: x without its last `bits`, rounded to nearest, ties up.
inline int32_t Nearest(int32_t x, int32_t bits) { return (x + (1 << (bits - 1))) >> bits; }

template <bool kIsHalf, class R>
inline float JoinWeight(uint16_t p, R residual) {
  using F = Form<kIsHalf>;
  constexpr int32_t kBits = 8 * sizeof(R), kUnit = kBits < F::kLost ? 1 << (F::kLost - kBits) : 1;
  constexpr int32_t kHalfway = 1 << (F::kLost - 1);
  const int32_t size = p & 0x7fff, r = residual;
  int32_t units = r * kUnit;
  if (kBits > F::kLost) {  // that of a p near zero has more bits
    units = units < -kHalfway ? -kHalfway : units > kHalfway - 1 ? kHalfway - 1 : units;
  }
  int32_t pattern = (size << F::kLost) + F::kBias + units;
  pattern = pattern < 0 ? 0 : pattern > kInfiniteFloat ? kInfiniteFloat : pattern;
  if (kIsHalf) pattern = size == F::kInfinite ? kInfiniteFloat : pattern;
  pattern = size > F::kInfinite ? 0x7fc00000 : pattern;
  const float w = FloatOfBits(static_cast<uint32_t>(pattern) | uint32_t{p & 0x8000u} << 16);
  if (!kIsHalf) return w;
  const int32_t steps = (p > 0x7fff ? -size : size) * (1 << kBits) + r;  // used up to kConstant
  const float near_zero = static_cast<float>(steps) * (0x1p-24f / (1 << kBits));
  return size <= F::kConstant ? near_zero : w;
}

template <bool kIsHalf, class R>
inline uint16_t SplitWeight(float w, uint32_t random, R* residual) {
  using F = Form<kIsHalf>;
  constexpr int32_t kBits = 8 * sizeof(R), kShift = kBits < F::kLost ? F::kLost - kBits : 0;
  constexpr int32_t kRest = F::kLost - kShift, kDropped = (1 << kShift) - 1;
  const uint32_t bits = BitsOfFloat(w);
  const int32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const bool is_nan = magnitude > kInfiniteFloat;
  const int32_t size = is_nan ? kInfiniteFloat : magnitude;  // so that no sum overflows
  // As many random bits as are dropped carry with the probability that those encode.
  const int32_t kept = (size - F::kBias + static_cast<int32_t>(random & kDropped)) >> kShift;
  int32_t own = Nearest(kept, kRest), r = kept - own * (1 << kRest);
  int32_t signed_zero = sign;
  if (kIsHalf) {
    r = own >= F::kInfinite ? 0 : r;
    own = own >= F::kInfinite ? F::kInfinite : own;
    const bool is_near_zero = size < F::kBias + (F::kConstant << F::kLost) + (1 << (F::kLost - 1));
    const float near = is_near_zero ? FloatOfBits(size) : 0;
    const float scaled = near * ((1 << kBits) * 0x1p24f);
    const int32_t below = static_cast<int32_t>(scaled);
    const float threshold = static_cast<float>(static_cast<int32_t>(random >> 8)) * 0x1p-24f;
    const int32_t steps = below + (scaled - static_cast<float>(below) > threshold);
    const int32_t with_sign = sign != 0 ? -steps : steps;
    const int32_t nearest = Nearest(with_sign, kBits);
    own = is_near_zero ? (nearest < 0 ? -nearest : nearest) : own;
    r = is_near_zero ? with_sign - nearest * (1 << kBits) : r;
    signed_zero = own == 0 ? 0 : sign;  // near zero, r has a sign of its own
  }
  *residual = static_cast<R>(is_nan ? 0 : r);
  return static_cast<uint16_t>((is_nan ? F::kNotANumber : own) | (is_nan ? sign : signed_zero));
}

template <bool kIsHalf, class R, class T>
void JoinAs(const Leaf& leaf, int64_t begin, int64_t n, T* __restrict w) {
  const uint16_t* __restrict p = static_cast<const uint16_t*>(leaf.p.data) + begin;
  const R* __restrict r = static_cast<const R*>(leaf.residual.data) + begin;
  for (int64_t i = 0; i < n; ++i) w[i] = JoinWeight<kIsHalf>(p[i], r[i]);
}

template <bool kIsHalf, class R, class T>
void SplitAs(const Leaf& leaf, int64_t begin, int64_t n, const T* __restrict w) {
  uint16_t* __restrict p = static_cast<uint16_t*>(leaf.p.data) + begin;
  R* __restrict r = static_cast<R*>(leaf.residual.data) + begin;
  const uint32_t key0 = leaf.residual_key[0], key1 = leaf.residual_key[1];
  const uint32_t first = static_cast<uint32_t>(begin);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t random = HashedBits(first + static_cast<uint32_t>(i), key0, key1);
    p[i] = SplitWeight<kIsHalf>(static_cast<float>(w[i]), random, &r[i]);
  }
}

// The weights of n elements from `begin` on, in T.
template <class T>
void JoinWeights(const Leaf& leaf, int64_t begin, int64_t n, T* __restrict w) {
  const bool is_half = leaf.p.dtype == Dtype::kFloat16;
  if (leaf.residual.dtype == Dtype::kInt8) {
    return is_half ? JoinAs<true, int8_t>(leaf, begin, n, w)
                   : JoinAs<false, int8_t>(leaf, begin, n, w);
  }
  return is_half ? JoinAs<true, int16_t>(leaf, begin, n, w)
                 : JoinAs<false, int16_t>(leaf, begin, n, w);
}

// The inverse; a weight that p and r cannot hold is rounded at random to one that they can.
template <class T>
void SplitWeights(const Leaf& leaf, int64_t begin, int64_t n, const T* __restrict w) {
  const bool is_half = leaf.p.dtype == Dtype::kFloat16;
  if (leaf.residual.dtype == Dtype::kInt8) {
    return is_half ? SplitAs<true, int8_t>(leaf, begin, n, w)
                   : SplitAs<false, int8_t>(leaf, begin, n, w);
  }
  return is_half ? SplitAs<true, int16_t>(leaf, begin, n, w)
                 : SplitAs<false, int16_t>(leaf, begin, n, w);
}

}  // namespace
}  // namespace adamx::ADAMX_ISA
