// The mathematics of Adam on a range of one leaf's elements; numerics.py has the same in JAX.
//
// Compiled once for each instruction set, with ADAMX_ISA as the name of its namespace, so that no
// function compiled for one is linked into another. For the same reason nothing of the standard
// library is called. The loops are written for the compiler to vectorise: no -ffast-math, so that
// NaN, infinity and signed zero go through as in XLA.

#include "residual.h"

namespace adamx::ADAMX_ISA {
namespace {

// ---- Arrays in the dtype of the computation -----------------------------------------------------

constexpr int64_t kChunk = 256;  // elements: in 1,024 the arrays evict one another from the cache

template <class T>
struct Scratch {
  alignas(64) T g[kChunk], m[kChunk], v[kChunk], v_max[kChunk], p[kChunk];
};

template <class T>
constexpr Dtype kOwn = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;

// The n elements from `begin` on as T: in their own memory, or converted into `scratch`.
template <class T>
T* Load(const Array& array, int64_t begin, int64_t n, T* __restrict scratch) {
  if (array.dtype == kOwn<T>) return static_cast<T*>(array.data) + begin;
  if (array.dtype == Dtype::kBfloat16) {
    const uint16_t* __restrict x = static_cast<const uint16_t*>(array.data) + begin;
    for (int64_t i = 0; i < n; ++i) scratch[i] = FromBfloat16(x[i]);
  } else if (array.dtype == Dtype::kFloat16) {
    const uint16_t* __restrict x = static_cast<const uint16_t*>(array.data) + begin;
    for (int64_t i = 0; i < n; ++i) scratch[i] = FromFloat16(x[i]);
  } else if (array.dtype == Dtype::kFloat32) {
    const float* __restrict x = static_cast<const float*>(array.data) + begin;
    for (int64_t i = 0; i < n; ++i) scratch[i] = x[i];
  }
  return scratch;
}

// The inverse of Load; nothing to do where the elements were computed in their own memory. From
// double to 16 bits it rounds to float first, as XLA does.
template <class T>
void Store(const Array& array, int64_t begin, int64_t n, const T* __restrict scratch) {
  if (array.dtype == kOwn<T>) return;
  if (array.dtype == Dtype::kBfloat16) {
    uint16_t* __restrict x = static_cast<uint16_t*>(array.data) + begin;
    for (int64_t i = 0; i < n; ++i) x[i] = ToBfloat16(static_cast<float>(scratch[i]));
  } else if (array.dtype == Dtype::kFloat16) {
    uint16_t* __restrict x = static_cast<uint16_t*>(array.data) + begin;
    for (int64_t i = 0; i < n; ++i) x[i] = ToFloat16(static_cast<float>(scratch[i]));
  } else if (array.dtype == Dtype::kFloat32) {
    float* __restrict x = static_cast<float*>(array.data) + begin;
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(scratch[i]);
  }
}

// The weights of a leaf: its parameters, or what these and the residuals are together.
template <class T>
T* LoadWeights(const Leaf& leaf, int64_t begin, int64_t n, T* __restrict scratch) {
  if (leaf.residual.data == nullptr) return Load(leaf.p, begin, n, scratch);
  JoinWeights(leaf, begin, n, scratch);
  return scratch;
}

template <class T>
void StoreWeights(const Leaf& leaf, int64_t begin, int64_t n, const T* __restrict w) {
  if (leaf.residual.data == nullptr) return Store(leaf.p, begin, n, w);
  SplitWeights(leaf, begin, n, w);
}

// ---- Adam ---------------------------------------------------------------------------------------

inline float Sqrt(float x) { return __builtin_sqrtf(x); }
inline double Sqrt(double x) { return __builtin_sqrt(x); }
// a * b + c, rounded once where the processor can, as XLA does there. It is explicit because the
// compiler would decide differently for different parts of a loop.
#if defined(__FMA__) || defined(__aarch64__)
inline float MultiplyAdd(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double MultiplyAdd(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
inline float MultiplyAdd(float a, float b, float c) { return a * b + c; }
inline double MultiplyAdd(double a, double b, double c) { return a * b + c; }
#endif

inline float Abs(float x) { return __builtin_fabsf(x); }
inline double Abs(double x) { return __builtin_fabs(x); }

// b * mean + (1 - b) * x, from whichever has the larger weight. Half of the difference is exact,
// and finite where the whole would overflow.
template <bool kFromMean, class T>
inline T MovingAverage(T mean, T x, T b, T rest) {
  const T half = MultiplyAdd(T(0.5), x, T(-0.5) * mean);
  return kFromMean ? MultiplyAdd(2 * rest, half, mean) : MultiplyAdd(-2 * b, half, x);
}

// The same for g^2. What has overflowed stays infinite, and does not turn into NaN.
template <bool kFromMean, class T>
inline T MeanSquare(T v, T g, T b, T rest) {
  const T infinity = T(__builtin_inf()), square = g * g, difference = MultiplyAdd(g, g, -v);
  if (kFromMean) return Abs(v) == infinity ? v : MultiplyAdd(rest, difference, v);
  return square == infinity || b == 0 ? square : MultiplyAdd(-b, difference, square);
}

// What the moments are multiplied by. Multiplication by a reciprocal is what XLA makes of a
// division by a scalar.
template <class T>
struct Factors {
  T half_m, before_maximum, after_maximum;

  Factors(const Scalars<T>& s, const Options& options) {
    const T corrected = 1 / s.v_correction;
    const bool corrected_before = options.amsgrad && options.maximum_of_corrected;
    half_m = (options.eps_beside_corrected ? 1 : Sqrt(s.v_correction)) / (2 * s.m_correction);
    before_maximum = corrected_before ? corrected : 1;
    after_maximum = options.eps_beside_corrected && !corrected_before ? corrected : 1;
  }
};

// kFromMeans: whether both decay rates are at least one half.
template <class T, bool kFromMeans, bool kAmsgrad, bool kDecoupled>
void Adam(int64_t n, const T* __restrict g, T* __restrict m, T* __restrict v,
          T* __restrict v_max, T* __restrict p, const Scalars<T>& scalars,
          const Factors<T>& factors) {
  const Scalars<T> s = scalars;
  const Factors<T> f = factors;
  for (int64_t i = 0; i < n; ++i) {
    if (kFromMeans) {
      m[i] = MovingAverage<true>(m[i], g[i], s.b1, s.one_minus_b1);
      v[i] = MeanSquare<true>(v[i], g[i], s.b2, s.one_minus_b2);
    } else {
      m[i] = s.b1 >= T(0.5) ? MovingAverage<true>(m[i], g[i], s.b1, s.one_minus_b1)
                            : MovingAverage<false>(m[i], g[i], s.b1, s.one_minus_b1);
      v[i] = s.b2 >= T(0.5) ? MeanSquare<true>(v[i], g[i], s.b2, s.one_minus_b2)
                            : MeanSquare<false>(v[i], g[i], s.b2, s.one_minus_b2);
    }
    T largest = v[i];
    if (kAmsgrad) {
      const T candidate = v[i] * f.before_maximum;
      const bool keep = v_max[i] > candidate || v_max[i] != v_max[i];  // NaN stays
      v_max[i] = largest = keep ? v_max[i] : candidate;
    }
    // Numerator and denominator are halved: the corrected m may just overflow, where v is infinite.
    const T denominator = T(0.5) * (Sqrt(largest * f.after_maximum + s.eps_root) + s.eps);
    T direction = m[i] * f.half_m / denominator;
    if (kDecoupled) direction = MultiplyAdd(s.weight_decay, p[i], direction);
    p[i] = MultiplyAdd(s.rate, direction, p[i]);
  }
}

template <class T, bool kFromMeans>
constexpr auto Variant(bool amsgrad, bool decoupled) {
  if (amsgrad) {
    return decoupled ? &Adam<T, kFromMeans, true, true> : &Adam<T, kFromMeans, true, false>;
  }
  return decoupled ? &Adam<T, kFromMeans, false, true> : &Adam<T, kFromMeans, false, false>;
}

// What happens to the gradient before Adam sees it: clipping, then weight decay.
template <class T>
void Prepare(int64_t n, T* __restrict g, const T* __restrict p, const Scalars<T>& s,
             bool clip, T norm, bool decays) {
  const T max_norm = s.max_norm, weight_decay = s.weight_decay;
  const T inverse = 1 / norm;
  if (clip && !(norm < max_norm))  // NaN too
    for (int64_t i = 0; i < n; ++i) g[i] = g[i] * inverse * max_norm;
  if (decays)
    for (int64_t i = 0; i < n; ++i) g[i] = MultiplyAdd(weight_decay, p[i], g[i]);
}

template <class T>
void Step(const Leaf& leaf, int64_t begin, int64_t end, const Scalars<T>& s,
          const Options& options, double norm) {
  const bool decays_gradient = leaf.decays && !options.decoupled;
  const bool decoupled = leaf.decays && options.decoupled;
  const bool from_means = s.b1 >= T(0.5) && s.b2 >= T(0.5);
  const auto adam = from_means ? Variant<T, true>(options.amsgrad, decoupled)
                               : Variant<T, false>(options.amsgrad, decoupled);
  const Factors<T> factors(s, options);

  Scratch<T> scratch;
  const bool as_they_lie = leaf.g.dtype == kOwn<T> && leaf.m.dtype == kOwn<T> &&
                           leaf.v.dtype == kOwn<T> && leaf.p.dtype == kOwn<T> &&
                           (!options.amsgrad || leaf.v_max.dtype == kOwn<T>);
  const bool direct = as_they_lie && !options.clip && !decays_gradient;
  const int64_t chunk = direct ? end - begin : kChunk;
  for (int64_t from = begin; from < end; from += chunk) {
    const int64_t n = end - from < chunk ? end - from : chunk;
    const T* g = Load(leaf.g, from, n, scratch.g);
    T* m = Load(leaf.m, from, n, scratch.m);
    T* v = Load(leaf.v, from, n, scratch.v);
    T* v_max = options.amsgrad ? Load(leaf.v_max, from, n, scratch.v_max) : nullptr;
    T* p = LoadWeights(leaf, from, n, scratch.p);
    if (options.clip || decays_gradient) {
      if (g != scratch.g) __builtin_memcpy(scratch.g, g, n * sizeof(T));
      Prepare(n, scratch.g, p, s, options.clip, static_cast<T>(norm), decays_gradient);
      g = scratch.g;
    }
    adam(n, g, m, v, v_max, p, s, factors);
    Store(leaf.m, from, n, m);
    Store(leaf.v, from, n, v);
    if (options.amsgrad) Store(leaf.v_max, from, n, v_max);
    StoreWeights(leaf, from, n, p);
  }
}

// In the dtype of the gradient, float32 at least, in lanes that add up in a fixed order.
template <class T>
double SumOfSquaresAs(const Array& g, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = 64;
  alignas(64) T scratch[kChunk];
  T lanes[kLanes] = {};
  for (int64_t from = begin; from < end; from += kChunk) {
    const int64_t n = end - from < kChunk ? end - from : kChunk;
    const T* x = Load(g, from, n, scratch);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
    for (; i < n; ++i) lanes[i % kLanes] += x[i] * x[i];
  }
  double sum = 0;
  for (T lane : lanes) sum += lane;
  return sum;
}

double SumOfSquares(const Array& g, int64_t begin, int64_t end) {
  return g.dtype == Dtype::kFloat64 ? SumOfSquaresAs<double>(g, begin, end)
                                    : SumOfSquaresAs<float>(g, begin, end);
}

}  // namespace
}  // namespace adamx::ADAMX_ISA
