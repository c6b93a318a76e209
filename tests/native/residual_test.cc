// Weights as a parameter and a residual: a step on both parts is the step on the weights in float.

#include <cmath>

#include "arrays.h"
#include "step.h"

namespace adamx::test {
namespace {

constexpr int64_t kSizes[] = {0, 1, 17, 256, 1025};
constexpr int64_t kChunk = 13;  // no multiple of a register's length

Scalars<float> Numbers() {
  return {0.9f, 0.1f, 0.999f, 0.001f, 1e-8f, 0, 0.1f, 0.001f, -1e-2f, 0.1f, 2};
}

// The float nearest to which p is, moved by r units of the last place that is kept: for bfloat16.
float Joined(uint16_t p, int32_t r, int bits) {
  const uint32_t pattern = (uint32_t{p} << 16) + static_cast<uint32_t>(r * (1 << (16 - bits)));
  float w;
  std::memcpy(&w, &pattern, sizeof w);
  return w;
}

template <class R>
struct Residuals {
  explicit Residuals(int64_t size) : r(size + 1, 77) {}  // one more, which nobody may touch
  R* data() { return r.data(); }
  std::vector<R> r;
};

TEST(StepsWithResidualsOf16BitsAreThoseInFloat) {
  for (const Kernels* kernels : EveryKernels())
    for (const Options& options : EveryOptions())
      for (int64_t size : kSizes) {
        LeafArrays wide(size, AllOf(Dtype::kFloat32));
        wide.FillRandom(static_cast<uint64_t>(size));
        const Dtype f32 = Dtype::kFloat32;
        LeafArrays narrow(size, {f32, f32, f32, f32, Dtype::kBfloat16});
        narrow.FillFrom(wide);
        Residuals<int16_t> residuals(size);
        for (int64_t i = 0; i < size; ++i) {
          residuals.r[i] = static_cast<int16_t>(i * 7919);
          // Away from a tie, at which two pairs are one weight.
          if (residuals.r[i] == -32768) residuals.r[i] = 0;
          wide[kP].Set(i, Joined(narrow[kP].Bits16(i), residuals.r[i], 16));
        }
        Leaf leaf = narrow.leaf(options.amsgrad);
        leaf.residual = {residuals.data(), Dtype::kInt16};
        for (int64_t at = 0; at < size; at += kChunk) {  // a stretch at a time, as blocks may be
          const int64_t end = std::min(at + kChunk, size);
          kernels->step32(leaf, at, end, Numbers(), options, 3);
        }
        kernels->step32(wide.leaf(options.amsgrad), 0, size, Numbers(), options, 3);
        for (int place : {kM, kV, kVMax})
          CHECK(narrow[place].SameBits(wide[place], 0, size), "%s", kPlaceNames[place]);
        for (int64_t i = 0; i < size; ++i) {
          const double found = Joined(narrow[kP].Bits16(i), residuals.r[i], 16);
          CHECK(found == wide[kP].Get(i), "%s: %.9g, expected %.9g", Describe(options).c_str(),
                found, wide[kP].Get(i));
        }
        CHECK(residuals.r[size] == 77 && narrow[kP].GuardsIntact());
      }
}

// A rate of 0 leaves each weight: with 8 bits, too, all that can be kept are kept.
TEST(EveryParameterAndResidualOf8BitsIsKept) {
  Scalars<float> numbers = Numbers();
  numbers.rate = 0;
  const int64_t size = 0x7f80 - 0x0080;  // the normal numbers of one sign
  for (const Kernels* kernels : EveryKernels())
    for (int sign : {0, 0x8000}) {
      const Dtype f32 = Dtype::kFloat32;
      LeafArrays arrays(size, {f32, f32, f32, f32, Dtype::kBfloat16}, false);
      Residuals<int8_t> residuals(size);
      for (int64_t i = 0; i < size; ++i) {
        for (int place : {kG, kM, kV}) arrays[place].Set(i, 0);
        arrays[kP].SetBits16(i, static_cast<uint16_t>((0x0080 + i) | sign));
        residuals.r[i] = static_cast<int8_t>(i % 255 - 127);
        if (i == 0) residuals.r[i] = 1;  // below is a subnormal weight
      }
      const std::vector<int8_t> before = residuals.r;
      Leaf leaf = arrays.leaf(false);
      leaf.residual = {residuals.data(), Dtype::kInt8};
      leaf.residual_key[0] = 1, leaf.residual_key[1] = 2;
      kernels->step32(leaf, 0, size, numbers, kOptax, 0);
      CHECK(residuals.r == before, "%s", kernels->name);
      for (int64_t i = 0; i < size; ++i)
        CHECK(arrays[kP].Bits16(i) == ((0x0080 + i) | sign), "%d", static_cast<int>(i));
    }
}

// Weights between two that can be kept become one of them, with the right mean.
TEST(WeightsAreRoundedAtRandom) {
  Scalars<float> numbers = Numbers();
  numbers.rate = -0x1p-18f;  // an eighth of a unit of 8 bits, of weights in [1, 2)
  numbers.weight_decay = 0;
  const int64_t size = 100000;
  const Dtype f32 = Dtype::kFloat32;
  for (const Kernels* kernels : EveryKernels()) {
    LeafArrays arrays(size, {f32, f32, f32, f32, Dtype::kBfloat16}, false);
    Residuals<int8_t> residuals(size);
    for (int64_t i = 0; i < size; ++i) {
      for (int place : {kG, kM, kV}) arrays[place].Set(i, place == kG ? -1 : 0);
      arrays[kP].Set(i, 1.5);
      residuals.r[i] = 5;
    }
    Leaf leaf = arrays.leaf(false);
    leaf.residual = {residuals.data(), Dtype::kInt8};
    leaf.residual_key[0] = 12345, leaf.residual_key[1] = 678;
    numbers.eps = 0;
    kernels->step32(leaf, 0, size, numbers, kOptax, 0);
    int64_t raised = 0;
    for (int64_t i = 0; i < size; ++i) {
      CHECK(residuals.r[i] == 5 || residuals.r[i] == 6, "%d", residuals.r[i]);
      CHECK(arrays[kP].Get(i) == 1.5);
      raised += residuals.r[i] == 6;
    }
    // Within 4 standard deviations; the numbers are the same in each run.
    const double share = static_cast<double>(raised) / size, expected = 0x1p-3;
    const double deviation = std::sqrt(expected * (1 - expected) / size);
    CHECK(std::fabs(share - expected) < 4 * deviation, "%.5f, expected %.5f", share, expected);
  }
}

}  // namespace
}  // namespace adamx::test
