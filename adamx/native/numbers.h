// The patterns of numbers, numbers of 16 bits, and random bits. Compiled like adam.h.

#ifndef ADAMX_ISA
#error "ADAMX_ISA names the namespace of the instruction set that this is compiled for"
#endif

#include "leaf.h"

namespace adamx::ADAMX_ISA {
namespace {

#ifdef __has_builtin
#define ADAMX_HAS_BIT_CAST __has_builtin(__builtin_bit_cast)
#else
#define ADAMX_HAS_BIT_CAST 0
#endif

// The same pattern as another type. From memcpy GCC makes an access to memory that it does not
// vectorise.
template <class To, class From>
inline To BitCast(From x) {
#if ADAMX_HAS_BIT_CAST
  return __builtin_bit_cast(To, x);
#else
  To bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

inline float FloatOfBits(uint32_t bits) { return BitCast<float>(bits); }
inline uint32_t BitsOfFloat(float x) { return BitCast<uint32_t>(x); }

inline float FromBfloat16(uint16_t x) { return FloatOfBits(uint32_t{x} << 16); }

inline uint16_t ToBfloat16(float x) {  // to nearest, ties to even
  const uint32_t bits = BitsOfFloat(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;  // rounding could carry a NaN into infinity
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Half precision by integers alone: the modes that flush subnormal numbers to zero are on here,
// and half's own subnormals must be kept.
inline float FromFloat16(uint16_t x) {
  const uint32_t sign = uint32_t{x & 0x8000u} << 16, magnitude = x & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;  // infinity and NaN
  // A subnormal half is an integer times 2^-24.
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const uint32_t bits = magnitude >= 0x7c00u  ? special
                        : magnitude < 0x400u ? BitsOfFloat(subnormal)
                                             : normal;
  return FloatOfBits(sign | bits);
}

inline uint16_t ToFloat16(float x) {  // to nearest, ties to even
  const uint32_t bits = BitsOfFloat(x), sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t odd = (magnitude >> 13) & 1u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + odd) >> 13;
  // Adding 0.5 leaves the subnormal half's bits at the end of the sum, rounded.
  const uint32_t subnormal = BitsOfFloat(FloatOfBits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  const uint32_t half = magnitude > 0x7f800000u    ? nan
                        : magnitude >= 0x477ff000u ? 0x7c00u  // rounds to infinity
                        : magnitude < 0x38800000u  ? subnormal
                                                   : normal;
  return static_cast<uint16_t>(sign | half);
}

// 32 random bits for element `index` of a leaf; random_bits.hashed_bits has the same.
inline uint32_t HashedBits(uint32_t index, uint32_t key0, uint32_t key1) {
  uint32_t x = index + key0;
  x = (x ^ (x >> 16)) * 0x7feb352du + key1;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

}  // namespace
}  // namespace adamx::ADAMX_ISA
