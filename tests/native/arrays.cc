#include "arrays.h"

#include <algorithm>
#include <cmath>

namespace adamx::test {
namespace {

constexpr unsigned char kUntouched = 0xa5;
constexpr size_t kFront = 64;  // bytes
// AddressSanitizer guards the end of an allocation itself, against reading too.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kBack = 0;
#elif defined(__has_feature)
constexpr size_t kBack = __has_feature(address_sanitizer) ? 0 : 64;
#else
constexpr size_t kBack = 64;
#endif

}  // namespace

GuardedArray::GuardedArray(Dtype dtype, int64_t size, int64_t offset)
    : dtype_(dtype), size_(size), front_(kFront + offset * Width(dtype)),
      memory_(front_ + size * Width(dtype) + kBack, kUntouched) {}

double GuardedArray::Get(int64_t i) const {
  switch (dtype_) {
    case Dtype::kFloat64: return Read<double>(i);
    case Dtype::kFloat32: return Read<float>(i);
    case Dtype::kInt8: return Read<int8_t>(i);
    case Dtype::kUint8: return Read<uint8_t>(i);
    case Dtype::kUint32: return Read<uint32_t>(i);
    default: return Decode16(Read<uint16_t>(i), FormatOf(dtype_));
  }
}

void GuardedArray::Set(int64_t i, double x) {
  switch (dtype_) {
    case Dtype::kFloat64: return Write(i, x);
    case Dtype::kFloat32: return Write(i, static_cast<float>(x));
    case Dtype::kInt8: return Write(i, static_cast<int8_t>(x));
    case Dtype::kUint8: return Write(i, static_cast<uint8_t>(x));
    case Dtype::kUint32: return Write(i, static_cast<uint32_t>(x));
    default: return Write(i, Encode16(static_cast<float>(x), FormatOf(dtype_)));
  }
}

bool GuardedArray::GuardsIntact() const {
  auto untouched = [](unsigned char byte) { return byte == kUntouched; };
  const auto begin = memory_.begin() + front_, end = begin + size_ * Width(dtype_);
  return std::all_of(memory_.begin(), begin, untouched) &&
         std::all_of(end, memory_.end(), untouched);
}

LeafArrays::LeafArrays(int64_t size, const Dtypes& dtypes, bool decays)
    : arrays_{GuardedArray(dtypes[kG], size, 1), GuardedArray(dtypes[kM], size, 3),
              GuardedArray(dtypes[kV], size, 5), GuardedArray(dtypes[kVMax], size, 7),
              GuardedArray(dtypes[kP], size, 9)},
      decays_(decays) {}

Leaf LeafArrays::leaf(bool amsgrad) {
  const Array none = {nullptr, Dtype::kFloat32};
  return {size(), arrays_[kG].array(), arrays_[kM].array(), arrays_[kV].array(),
          amsgrad ? arrays_[kVMax].array() : none, arrays_[kP].array(), decays_};
}

void LeafArrays::FillRandom(uint64_t seed) {
  Random random(seed);
  for (int place = 0; place < kPlaces; ++place)
    for (int64_t i = 0; i < size(); ++i) {
      const int exponent = static_cast<int>(random.Below(12)) - 6;
      const double magnitude = std::ldexp(random.Between(1, 2), exponent);
      const bool positive = place == kV || place == kVMax || random.Below(2);
      arrays_[place].Set(i, positive ? magnitude : -magnitude);
    }
}

void LeafArrays::FillFrom(const LeafArrays& other) {
  for (int place = 0; place < kPlaces; ++place)
    for (int64_t i = 0; i < size(); ++i) arrays_[place].Set(i, other[place].Get(i));
}

void CheckSame(const LeafArrays& found, const LeafArrays& expected, const std::string& what) {
  for (int place = 0; place < kPlaces; ++place) {
    const GuardedArray &x = found[place], &y = expected[place];
    CHECK(x.GuardsIntact(), "%s: %s", what.c_str(), kPlaceNames[place]);
    if (x.SameBits(y, 0, x.size())) continue;
    int64_t i = 0;
    while (x.SameBits(y, i, i + 1)) ++i;
    CHECK(false, "%s: %s[%d] is %.17g, expected %.17g", what.c_str(), kPlaceNames[place],
          static_cast<int>(i), x.Get(i), y.Get(i));
  }
}

}  // namespace adamx::test
