// What the kernel should compute, element by element, in any floating-point type.
//
// Written from Kingma & Ba 2015 (https://arxiv.org/abs/1412.6980) and for AMSGrad Reddi et al. 2018
// (https://arxiv.org/abs/1904.09237), not from the kernel.

#ifndef ADAMX_TESTS_REFERENCE_H_
#define ADAMX_TESTS_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "leaf.h"

namespace adamx::test {

// ---- Formats ------------------------------------------------------------------------------------

struct Format {
  int digits;        // of the significand, the hidden one included
  int min_exponent;  // of the smallest normal number, which is 2^min_exponent
  int max_exponent;  // of the largest number
};

constexpr Format FormatOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64: return {53, -1022, 1023};
    case Dtype::kFloat32: return {24, -126, 127};
    case Dtype::kBfloat16: return {8, -126, 127};
    default: return {11, -14, 15};
  }
}

// The distance between the numbers of a format around x, subnormal numbers included.
inline double UnitInLastPlace(double x, const Format& format) {
  const int exponent = x == 0 ? format.min_exponent : std::ilogb(x);
  const int clamped = std::min(std::max(exponent, format.min_exponent), format.max_exponent);
  return std::ldexp(1.0, clamped - (format.digits - 1));
}

// The bits of x in a format of 16 bits, rounded to nearest, ties to even. A NaN is any NaN.
inline uint16_t Encode16(double x, const Format& format) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const int fraction_bits = format.digits - 1;
  const uint16_t infinity = static_cast<uint16_t>(0x7fff >> fraction_bits << fraction_bits);
  if (std::isnan(x)) return infinity | 1;
  if (std::fabs(x) >= std::ldexp(1.0, format.max_exponent + 1)) return sign | infinity;
  // In units of the last place; that it may reach the next exponent's first number is fine.
  const double unit = UnitInLastPlace(x, format);
  const int64_t significand = static_cast<int64_t>(std::nearbyint(std::fabs(x) / unit));
  const int64_t exponent = std::ilogb(unit) + fraction_bits - format.min_exponent;
  const int64_t magnitude = (exponent << fraction_bits) + significand;
  return sign | static_cast<uint16_t>(std::min<int64_t>(magnitude, infinity));
}

inline double Decode16(uint16_t bits, const Format& format) {
  const int fraction_bits = format.digits - 1;
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  double magnitude;
  if (exponent == 0x7fff >> fraction_bits) {
    magnitude = fraction ? std::numeric_limits<double>::quiet_NaN()
                         : std::numeric_limits<double>::infinity();
  } else {
    const int significand = exponent ? fraction + (1 << fraction_bits) : fraction;
    magnitude = std::ldexp(significand, std::max(exponent, 1) - 1 + format.min_exponent -
                                            fraction_bits);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

// ---- Adam ---------------------------------------------------------------------------------------

// The hyperparameters at step t. By default each of them is seen in the last digits of a result.
struct Hyperparameters {
  long double b1 = 0.9L, b2 = 0.999L, eps = 1e-2L, eps_root = 1e-3L;
  long double learning_rate = 0.5L, weight_decay = 0.1L, max_norm = 2.0L;
  int t = 3;
};

template <class T>
Scalars<T> Rounded(const Hyperparameters& h) {
  auto round = [](long double x) { return static_cast<T>(x); };
  return {round(h.b1), round(1 - h.b1), round(h.b2), round(1 - h.b2), round(h.eps),
          round(h.eps_root), round(1 - std::pow(h.b1, h.t)), round(1 - std::pow(h.b2, h.t)),
          round(-h.learning_rate), round(h.weight_decay), round(h.max_norm)};
}

template <class R>
struct Element {
  R g, m, v, v_max, p;
};

template <class R>
struct Expected {
  Element<R> value;  // after the step; of g, what Adam sees
  Element<R> scale;  // the magnitude of what enters each
};

// The moving average as it is defined, and as numerics.py computes it: the same but for rounding
// and for infinite or NaN operands.
struct AsDefined {
  template <class R>
  R operator()(R mean, R x, R b, R rest) const { return b * mean + rest * x; }
};
struct AsInNumerics {
  template <class R>
  R operator()(R mean, R x, R b, R rest) const {
    const R half = x / 2 - mean / 2;
    return b >= R(0.5) ? mean + 2 * rest * half : x - 2 * b * half;
  }
};

template <class R, class Average>
Expected<R> Reference(const Element<R>& x, const Scalars<R>& c, const Options& options,
                      bool decays, R norm, Average average) {
  using std::fabs, std::fmax, std::sqrt;
  Element<R> y = x, scale;

  if (options.clip && !(norm < c.max_norm)) y.g = x.g / norm * c.max_norm;
  scale.g = fabs(y.g);
  if (!options.decoupled && decays) {
    y.g += c.weight_decay * x.p;
    scale.g += fabs(c.weight_decay * x.p);  // a sum, as it is to be squared
  }

  y.m = average(x.m, y.g, c.b1, c.one_minus_b1);
  scale.m = fmax(fabs(c.b1 * x.m), c.one_minus_b1 * scale.g);
  // What has overflowed stays infinite.
  const R square = y.g * y.g;
  const R first = c.b2 >= R(0.5) ? x.v : square;  // what has the larger weight
  y.v = std::isinf(first) ? first : average(x.v, square, c.b2, c.one_minus_b2);
  scale.v = fmax(fabs(c.b2 * x.v), c.one_minus_b2 * scale.g * scale.g);

  // The second moment under the root, and how much larger its scale is than itself.
  R root_of = y.v, excess = scale.v / (fabs(y.v) + c.eps_root);
  const bool correct_first = options.maximum_of_corrected && options.amsgrad;
  const bool correct_last = options.eps_beside_corrected && !correct_first;
  if (correct_first) root_of /= c.v_correction;
  scale.v_max = 0;
  if (options.amsgrad) {
    const bool has_nan = std::isnan(root_of) || std::isnan(x.v_max);
    y.v_max = has_nan ? std::numeric_limits<R>::quiet_NaN() : std::max(root_of, x.v_max);
    scale.v_max = fmax(fabs(y.v_max), correct_first ? scale.v / c.v_correction : scale.v);
    root_of = y.v_max;
  }
  if (correct_last) root_of /= c.v_correction;

  const bool keras = !options.eps_beside_corrected;
  const R m_factor = keras ? sqrt(c.v_correction) / c.m_correction : R(1);
  const R m_divisor = keras ? R(1) : c.m_correction;
  const R denominator = sqrt(root_of + c.eps_root) + c.eps;
  // In halves: beside a v that has overflowed steps are 0, however large the corrected m is.
  R direction = y.m * m_factor / (2 * m_divisor) / (denominator / 2);
  R direction_scale = fmax(scale.m * m_factor / m_divisor / fabs(denominator),
                           fabs(direction) * fmax(R(1), excess));
  if (options.decoupled && decays) {
    direction += c.weight_decay * x.p;
    direction_scale = fmax(direction_scale, fabs(c.weight_decay * x.p));
  }
  y.p = x.p + c.rate * direction;
  scale.p = fmax(fabs(x.p), fabs(c.rate) * direction_scale);
  return {y, scale};
}

}  // namespace adamx::test

#endif  // ADAMX_TESTS_REFERENCE_H_
