// Numbers of 16 bits on their way into and out of a step.
//
// Where it has to be seen what a step loads or stores, the step is made to copy exactly: a rate of
// -0 leaves every p as it is, and b1 = 0 makes every finite g the new m.

#include "arrays.h"

namespace adamx::test {
namespace {

constexpr int64_t kAllBits = 1 << 16;
constexpr Dtype kDtypesOf16Bits[] = {Dtype::kBfloat16, Dtype::kFloat16};
constexpr Options kPlain = kOptax;  // on leaves without weight decay

template <class T>
Scalars<T> Copying() {
  Hyperparameters h;
  h.b1 = 0;
  Scalars<T> c = Rounded<T>(h);
  c.rate = T(-0.0);
  return c;
}

// All values of 16 bits, loaded and stored again as p while m and g are zero.
template <class T>
void TestRoundTrips(const Kernels& kernels, Dtype dtype) {
  const Format format = FormatOf(dtype);
  Dtypes dtypes = AllOf(kDtypeOf<T>);
  dtypes[kP] = dtype;
  LeafArrays arrays(kAllBits, dtypes, false);
  for (int64_t i = 0; i < kAllBits; ++i) {
    for (int place : {kG, kM, kV}) arrays[place].Set(i, 0);
    arrays[kP].SetBits16(i, static_cast<uint16_t>(i));
  }
  RunStep(kernels, arrays.leaf(false), 0, kAllBits, Copying<T>(), kPlain, 0);
  for (int64_t i = 0; i < kAllBits; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i), found = arrays[kP].Bits16(i);
    if (std::isnan(Decode16(bits, format))) {
      CHECK(std::isnan(Decode16(found, format)), "%s: %04x from %04x", kernels.name, found, bits);
    } else {
      CHECK(found == bits, "%s: %04x from %04x", kernels.name, found, bits);
    }
  }
}

// All finite values of 16 bits, loaded as g and seen as m.
template <class T>
void TestLoads(const Kernels& kernels, Dtype dtype) {
  Dtypes dtypes = AllOf(kDtypeOf<T>);
  dtypes[kG] = dtype;
  LeafArrays arrays(kAllBits, dtypes, false);
  for (int64_t i = 0; i < kAllBits; ++i) {
    for (int place : {kM, kV, kP}) arrays[place].Set(i, 0);
    arrays[kG].SetBits16(i, static_cast<uint16_t>(i));
  }
  RunStep(kernels, arrays.leaf(false), 0, kAllBits, Copying<T>(), kPlain, 0);
  for (int64_t i = 0; i < kAllBits; ++i) {
    const double expected = Decode16(static_cast<uint16_t>(i), FormatOf(dtype));
    const double found = arrays[kM].Get(i);
    if (std::isfinite(expected))
      CHECK(found == expected, "%s: %.17g, expected %.17g", kernels.name, found, expected);
  }
}

// Numbers in T that show how they are rounded to a format: its own, the ties between them, and
// the neighbours of both; also NaNs.
template <class T, class Bits>
std::vector<T> ValuesToRound(const Format& format) {
  std::vector<T> values;
  auto add_around = [&](double x) {
    const T at = static_cast<T>(x);
    values.push_back(at);
    values.push_back(std::nextafter(at, std::numeric_limits<T>::infinity()));
    values.push_back(std::nextafter(at, -std::numeric_limits<T>::infinity()));
  };
  for (int64_t i = 0; i < kAllBits; ++i) {
    const double x = Decode16(static_cast<uint16_t>(i), format);
    if (!std::isfinite(x)) continue;
    add_around(x);
    add_around(x + std::copysign(0.5 * UnitInLastPlace(x, format), x));
    add_around(x + std::copysign(0.25 * UnitInLastPlace(x, format), x));
  }
  // Below the smallest numbers, above the largest; none is infinite in T, whose square would be.
  for (int exponent = -160; exponent < 128; ++exponent) add_around(std::ldexp(1.0, exponent));
  add_around(std::numeric_limits<float>::max());
  add_around(-std::numeric_limits<float>::max());
  // NaNs with payloads in the bits that are rounded away, and one that rounding would carry over.
  const int fraction_bits = FormatOf(kDtypeOf<T>).digits - 1;
  const Bits quiet = ((Bits{1} << (8 * sizeof(T) - 1 - fraction_bits)) - 1) << fraction_bits |
                     Bits{1} << (fraction_bits - 1);
  const Bits sign = Bits{1} << (8 * sizeof(T) - 1);
  for (Bits bits : {quiet, quiet | 1, quiet | 0x1000, quiet | ((Bits{1} << fraction_bits) - 1),
                    static_cast<Bits>(quiet ^ (Bits{3} << (fraction_bits - 1)) >> 1)}) {
    for (Bits any : {bits, bits | sign}) {
      T x;
      std::memcpy(&x, &any, sizeof x);
      values.push_back(x);
    }
  }
  return values;
}

template <class T, class Bits>
void TestStores(const Kernels& kernels, Dtype dtype) {
  const std::vector<T> values = ValuesToRound<T, Bits>(FormatOf(dtype));
  const int64_t size = static_cast<int64_t>(values.size());
  Dtypes dtypes = AllOf(kDtypeOf<T>);
  dtypes[kM] = dtype;
  LeafArrays arrays(size, dtypes, false);
  for (int64_t i = 0; i < size; ++i) {
    for (int place : {kM, kV, kP}) arrays[place].Set(i, 0);
    std::memcpy(arrays[kG].data() + i * sizeof(T), &values[i], sizeof(T));
  }
  RunStep(kernels, arrays.leaf(false), 0, size, Copying<T>(), kPlain, 0);
  for (int64_t i = 0; i < size; ++i) {
    const double value = values[i];
    // By way of float, also from double; x - 0 * x makes -0 a 0.
    const float once = static_cast<float>(value);
    const uint16_t found = arrays[kM].Bits16(i);
    if (std::isinf(value)) continue;  // no copy: 0 times infinity is NaN
    if (std::isnan(value)) {
      CHECK(std::isnan(Decode16(found, FormatOf(dtype))), "%s: %04x", kernels.name, found);
    } else {
      const uint16_t expected = Encode16(value == 0 ? 0 : once, FormatOf(dtype));
      CHECK(found == expected, "%s: %.17g as %04x, expected %04x", kernels.name, value, found,
            expected);
    }
  }
}

TEST(RoundTripsOf16Bits) {
  for (const Kernels* kernels : EveryKernels())
    for (Dtype dtype : kDtypesOf16Bits) {
      TestRoundTrips<float>(*kernels, dtype);
      TestRoundTrips<double>(*kernels, dtype);
    }
}

TEST(LoadsOf16Bits) {
  for (const Kernels* kernels : EveryKernels())
    for (Dtype dtype : kDtypesOf16Bits) {
      TestLoads<float>(*kernels, dtype);
      TestLoads<double>(*kernels, dtype);
    }
}

TEST(StoresOf16Bits) {
  for (const Kernels* kernels : EveryKernels())
    for (Dtype dtype : kDtypesOf16Bits) {
      TestStores<float, uint32_t>(*kernels, dtype);
      TestStores<double, uint64_t>(*kernels, dtype);
    }
}

// The reference's conversions on examples that can be looked up.
TEST(ReferenceOf16Bits) {
  const Format half = FormatOf(Dtype::kFloat16), brain = FormatOf(Dtype::kBfloat16);
  const struct { double value; uint16_t half, brain; } examples[] = {
      {0, 0x0000, 0x0000}, {-0.0, 0x8000, 0x8000}, {1, 0x3c00, 0x3f80}, {-2, 0xc000, 0xc000},
      {65504, 0x7bff, 0x4780}, {65519, 0x7bff, 0x4780}, {65520, 0x7c00, 0x4780},
      {0x1p-14, 0x0400, 0x3880}, {0x1p-24, 0x0001, 0x3380}, {0x1p-25, 0x0000, 0x3300},
      {0x1.8p-24, 0x0002, 0x33c0}, {1 + 0x1p-11, 0x3c00, 0x3f80}, {1 + 0x3p-11, 0x3c02, 0x3f80},
      {1 + 0x1p-8, 0x3c04, 0x3f80}, {1 + 0x3p-8, 0x3c0c, 0x3f82}, {0x1p-133, 0x0000, 0x0001},
      {0x1p-126, 0x0000, 0x0080}, {0x1.fep127, 0x7c00, 0x7f7f}, {0x1.ffp127, 0x7c00, 0x7f80}};
  for (const auto& x : examples) {
    CHECK(Encode16(x.value, half) == x.half, "%g: %04x", x.value, Encode16(x.value, half));
    CHECK(Encode16(x.value, brain) == x.brain, "%g: %04x", x.value, Encode16(x.value, brain));
  }
  for (int64_t i = 0; i < kAllBits; ++i)
    for (const Format& format : {half, brain}) {
      const uint16_t bits = static_cast<uint16_t>(i);
      const double value = Decode16(bits, format);
      CHECK(std::isnan(value) || Encode16(value, format) == bits, "%04x", bits);
    }
}

}  // namespace
}  // namespace adamx::test
