// The arguments of the custom calls: read, and checked one by one.

#ifndef ADAMX_ARGUMENTS_H_
#define ADAMX_ARGUMENTS_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "step.h"
#include "xla/ffi/api/ffi.h"

namespace adamx {

namespace ffi = xla::ffi;

// Where the moments of a leaf begin in those buffers, and whether weight decay applies to it: the
// fields of plan.Row, in their order.
struct Row {
  int64_t mu_buffer, mu_element;
  int64_t nu_buffer, nu_element;  // of nu_max too
  int64_t decays;
  int64_t group;          // elements that share a scale, of moments in 8 bits; or 0
  int64_t residual_bits;  // 8 or 16, of a parameter with a residual; or 0
};

constexpr int64_t kRowLength = sizeof(Row) / sizeof(int64_t);
constexpr int64_t kFirstBuffer = 4;  // after the scalars, twice, the norm, and the keys

inline ffi::Error Wrong(const std::string& what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "adamx: " + what);
}

inline bool ToDtype(ffi::DataType type, Dtype* dtype) {
  switch (type) {
    case ffi::DataType::F32: *dtype = Dtype::kFloat32; return true;
    case ffi::DataType::F64: *dtype = Dtype::kFloat64; return true;
    case ffi::DataType::BF16: *dtype = Dtype::kBfloat16; return true;
    case ffi::DataType::F16: *dtype = Dtype::kFloat16; return true;
    case ffi::DataType::S8: *dtype = Dtype::kInt8; return true;
    case ffi::DataType::U8: *dtype = Dtype::kUint8; return true;
    case ffi::DataType::U32: *dtype = Dtype::kUint32; return true;
    case ffi::DataType::S16: *dtype = Dtype::kInt16; return true;
    default: return false;
  }
}

// An argument. In a buffer of moments, `used` is where the last leaf's part ends.
struct Buffer {
  Array array;
  int64_t size, columns;  // elements in all, and along the last axis
  int64_t used = 0;
};

inline Array At(const Buffer& buffer, int64_t element) {
  char* data = static_cast<char*>(buffer.array.data);
  return {data + element * Width(buffer.array.dtype), buffer.array.dtype};
}

template <class T>
bool ReadScalars(const ffi::AnyBuffer& buffer, ffi::DataType type, Scalars<T>* scalars) {
  if (buffer.element_type() != type || buffer.element_count() * sizeof(T) != sizeof *scalars)
    return false;
  std::memcpy(scalars, buffer.untyped_data(), sizeof *scalars);
  return true;
}

inline bool ReadNumber(const ffi::AnyBuffer& buffer, double* value) {
  if (buffer.element_count() != 1) return false;
  if (buffer.element_type() == ffi::DataType::F32) {
    *value = *static_cast<const float*>(buffer.untyped_data());
  } else if (buffer.element_type() == ffi::DataType::F64) {
    *value = *static_cast<const double*>(buffer.untyped_data());
  } else {
    return false;
  }
  return true;
}

// All arguments from number `first` on.
inline ffi::Error ReadBuffers(const ffi::RemainingArgs& args, size_t first,
                              std::vector<Buffer>* buffers) {
  buffers->reserve(args.size() - first);
  for (size_t i = first; i < args.size(); ++i) {
    const auto arg = args.get<ffi::AnyBuffer>(i);
    if (!arg.has_value()) return arg.error();
    Buffer buffer;
    if (!ToDtype(arg->element_type(), &buffer.array.dtype))
      return Wrong("argument " + std::to_string(i) + " has a dtype that the kernel does not know");
    buffer.size = arg->element_count();
    const auto dimensions = arg->dimensions();
    buffer.columns = dimensions.size() == 0 ? 1 : dimensions.back();
    buffer.array.data = arg->untyped_data();
    buffers->push_back(buffer);
  }
  return ffi::Error::Success();
}

inline bool IsFloat(const Array& array) {
  return array.data == nullptr || array.dtype <= Dtype::kFloat16;
}

// Give a leaf the scales of its moments in 8 bits; return whether its arrays fit together.
inline bool ReadScales(const Buffer& m, const Buffer& v, const Buffer& m_scales,
                       const Buffer& v_scales, int64_t group, Leaf* leaf) {
  if (m.array.dtype != Dtype::kInt8 || v.array.dtype != Dtype::kUint8 ||
      m_scales.array.dtype != Dtype::kBfloat16 ||
      v_scales.array.dtype != Dtype::kUint32 || group < 1 || group > kMaxGroup ||
      m.size != leaf->size || v.size != leaf->size || m.columns != v.columns ||
      leaf->size > UINT32_MAX || InDouble(*leaf))
    return false;
  const int64_t rows = m.columns == 0 ? 0 : m.size / m.columns;
  const int64_t scales = rows * ((m.columns + group - 1) / group);
  if (m_scales.size != scales || v_scales.size != scales) return false;
  leaf->group = group;
  leaf->columns = m.columns;
  leaf->m_scales = static_cast<uint16_t*>(m_scales.array.data);
  leaf->v_scales = static_cast<uint32_t*>(v_scales.array.data);
  return true;
}

// Give a leaf its residual; return whether that fits the parameter.
inline bool ReadResidual(const Buffer& residual, int64_t bits, Leaf* leaf) {
  const Dtype dtype = bits == 8 ? Dtype::kInt8 : Dtype::kInt16;
  const bool is_narrow =
      leaf->p.dtype == Dtype::kBfloat16 || leaf->p.dtype == Dtype::kFloat16;
  if ((bits != 8 && bits != 16) || residual.array.dtype != dtype ||
      residual.size != leaf->size || !is_narrow || leaf->size > UINT32_MAX)
    return false;
  leaf->residual = residual.array;
  return true;
}

}  // namespace adamx

#endif  // ADAMX_ARGUMENTS_H_
