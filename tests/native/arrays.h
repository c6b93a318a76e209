// Arrays of a leaf in memory of their own, with bytes around them that nobody may touch.

#ifndef ADAMX_TESTS_ARRAYS_H_
#define ADAMX_TESTS_ARRAYS_H_

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "reference.h"

namespace adamx::test {

// `size` elements that start `offset` elements after an address that is a multiple of 16.
class GuardedArray {
 public:
  GuardedArray(Dtype dtype, int64_t size, int64_t offset);

  Dtype dtype() const { return dtype_; }
  int64_t size() const { return size_; }
  unsigned char* data() { return memory_.data() + front_; }
  const unsigned char* data() const { return memory_.data() + front_; }
  Array array() { return {data(), dtype_}; }

  double Get(int64_t i) const;
  // Rounded once to the dtype; from double to 16 bits, as the kernel does, by way of float.
  void Set(int64_t i, double x);
  uint16_t Bits16(int64_t i) const { return Read<uint16_t>(i); }
  void SetBits16(int64_t i, uint16_t bits) { Write(i, bits); }

  // Whether [begin, end) has the same bits as in another array of the same dtype.
  bool SameBits(const GuardedArray& other, int64_t begin, int64_t end) const {
    const size_t width = Width(dtype_);
    return begin == end || std::memcmp(data() + begin * width, other.data() + begin * width,
                                       (end - begin) * width) == 0;
  }
  bool GuardsIntact() const;

 private:
  template <class T>
  T Read(int64_t i) const {
    T x;
    std::memcpy(&x, data() + i * sizeof x, sizeof x);
    return x;
  }
  template <class T>
  void Write(int64_t i, T x) { std::memcpy(data() + i * sizeof x, &x, sizeof x); }

  Dtype dtype_;
  int64_t size_;
  size_t front_;  // bytes before the first element
  std::vector<unsigned char> memory_;
};

enum Place { kG, kM, kV, kVMax, kP, kPlaces };
constexpr const char* kPlaceNames[kPlaces] = {"g", "m", "v", "v_max", "p"};
using Dtypes = std::array<Dtype, kPlaces>;

// The arrays of one leaf, each at an odd offset of its own.
class LeafArrays {
 public:
  LeafArrays(int64_t size, const Dtypes& dtypes, bool decays = true);

  int64_t size() const { return arrays_[kG].size(); }
  bool decays() const { return decays_; }
  void set_decays(bool decays) { decays_ = decays; }
  GuardedArray& operator[](int place) { return arrays_[place]; }
  const GuardedArray& operator[](int place) const { return arrays_[place]; }

  Leaf leaf(bool amsgrad);

  // Gradients, moments and parameters of magnitudes that differ widely but fit half precision.
  void FillRandom(uint64_t seed);
  // The same numbers, each rounded to the dtype of its place here.
  void FillFrom(const LeafArrays& other);

  template <class R>
  Element<R> At(int64_t i) const {
    auto get = [&](Place place) { return static_cast<R>(arrays_[place].Get(i)); };
    return {get(kG), get(kM), get(kV), get(kVMax), get(kP)};
  }

 private:
  std::array<GuardedArray, kPlaces> arrays_;
  bool decays_;
};

template <class R>
R Part(const Element<R>& element, int place) {
  const R parts[kPlaces] = {element.g, element.m, element.v, element.v_max, element.p};
  return parts[place];
}

constexpr Dtypes AllOf(Dtype dtype) { return {dtype, dtype, dtype, dtype, dtype}; }
template <class T>
constexpr Dtype kDtypeOf = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;

// Checks that two leaves have the same bits, and that nothing around them was touched.
void CheckSame(const LeafArrays& found, const LeafArrays& expected, const std::string& what);

}  // namespace adamx::test

#endif  // ADAMX_TESTS_ARRAYS_H_
