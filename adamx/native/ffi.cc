// The step as custom calls of XLA: they check their arguments, and pass them to the kernel.
//
// adamx_step: Arguments are the scalars of the step in float32 and in float64 (the latter empty
// unless an array is of float64), the global norm of the gradients as a scalar of either (read if
// they are clipped), a key of two uint32 for each leaf (empty unless moments are in 8 bits), the
// buffers of mu, of nu and, with AMSGrad, of nu_max, the scales of mu for each leaf with moments in
// 8 bits, then those of nu, then each leaf's gradient, then each leaf's parameter. Results are the
// moments, scales and parameters, each in the memory of its argument. `table` has a Row for each
// leaf.
//
// adamx_norm: Arguments are gradients, the result is their global norm, a scalar.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "step.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// The version of the arguments and attributes. It is in the names under which the handlers are
// registered, so that a program that was compiled for another version does not find them.
constexpr int kInterface = 3;

// Where the moments of a leaf begin in those buffers, and whether weight decay applies to it: the
// fields of plan.Row, in their order.
struct Row {
  int64_t mu_buffer, mu_element;
  int64_t nu_buffer, nu_element;  // of nu_max too
  int64_t decays;
  int64_t group;  // elements that share a scale, of moments in 8 bits; or 0
};

constexpr int64_t kRowLength = sizeof(Row) / sizeof(int64_t);
constexpr int64_t kFirstBuffer = 4;  // after the scalars, twice, the norm, and the keys

ffi::Error Wrong(const std::string& what) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "adamx: " + what);
}

bool ToDtype(ffi::DataType type, adamx::Dtype* dtype) {
  switch (type) {
    case ffi::DataType::F32: *dtype = adamx::Dtype::kFloat32; return true;
    case ffi::DataType::F64: *dtype = adamx::Dtype::kFloat64; return true;
    case ffi::DataType::BF16: *dtype = adamx::Dtype::kBfloat16; return true;
    case ffi::DataType::F16: *dtype = adamx::Dtype::kFloat16; return true;
    case ffi::DataType::S8: *dtype = adamx::Dtype::kInt8; return true;
    case ffi::DataType::U8: *dtype = adamx::Dtype::kUint8; return true;
    case ffi::DataType::U32: *dtype = adamx::Dtype::kUint32; return true;
    default: return false;
  }
}

// An argument. In a buffer of moments, `used` is where the last leaf's part ends.
struct Buffer {
  adamx::Array array;
  int64_t size, columns;  // elements in all, and along the last axis
  int64_t used = 0;
};

adamx::Array At(const Buffer& buffer, int64_t element) {
  char* data = static_cast<char*>(buffer.array.data);
  return {data + element * adamx::Width(buffer.array.dtype), buffer.array.dtype};
}

template <class T>
bool ReadScalars(const ffi::AnyBuffer& buffer, ffi::DataType type, adamx::Scalars<T>* scalars) {
  if (buffer.element_type() != type || buffer.element_count() * sizeof(T) != sizeof *scalars)
    return false;
  std::memcpy(scalars, buffer.untyped_data(), sizeof *scalars);
  return true;
}

bool ReadNumber(const ffi::AnyBuffer& buffer, double* value) {
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
ffi::Error ReadBuffers(const ffi::RemainingArgs& args, size_t first, std::vector<Buffer>* buffers) {
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

bool IsFloat(const adamx::Array& array) {
  return array.data == nullptr || array.dtype <= adamx::Dtype::kFloat16;
}

// Give a leaf the scales of its moments in 8 bits; return whether its arrays fit together.
bool ReadScales(const Buffer& m, const Buffer& v, const Buffer& m_scales, const Buffer& v_scales,
                int64_t group, adamx::Leaf* leaf) {
  if (m.array.dtype != adamx::Dtype::kInt8 || v.array.dtype != adamx::Dtype::kUint8 ||
      m_scales.array.dtype != adamx::Dtype::kBfloat16 ||
      v_scales.array.dtype != adamx::Dtype::kUint32 || group < 1 || group > adamx::kMaxGroup ||
      m.size != leaf->size || v.size != leaf->size || m.columns != v.columns ||
      leaf->size > UINT32_MAX || adamx::InDouble(*leaf))
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

ffi::Error StepHandler(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                       bool eps_beside_corrected, bool maximum_of_corrected, bool amsgrad,
                       bool decoupled, bool clip, int64_t mu_buffers, int64_t nu_buffers,
                       ffi::Span<const int64_t> table) {
  if (table.size() % kRowLength != 0) return Wrong("the table has a broken row");
  const int64_t leaf_count = table.size() / kRowLength, moments = amsgrad ? 3 : 2;
  const int64_t given = args.size();
  if (mu_buffers < 0 || nu_buffers < 0 || mu_buffers > given || nu_buffers > given)
    return Wrong("expected other numbers of buffers of moments");
  std::vector<Row> rows(leaf_count);
  if (leaf_count != 0) std::memcpy(rows.data(), table.begin(), leaf_count * sizeof(Row));
  int64_t coded = 0;  // leaves with moments in 8 bits
  for (const Row& row : rows) coded += row.group != 0;
  const int64_t first_scale = mu_buffers + nu_buffers * (moments - 1);
  const int64_t updated = first_scale + 2 * coded;  // buffers of moments and scales
  if (static_cast<int64_t>(args.size()) != kFirstBuffer + updated + 2 * leaf_count)
    return Wrong("expected " + std::to_string(kFirstBuffer + updated + 2 * leaf_count) +
                 " arguments, found " + std::to_string(args.size()));
  if (static_cast<int64_t>(rets.size()) != updated + leaf_count)
    return Wrong("expected " + std::to_string(updated + leaf_count) + " results, found " +
                 std::to_string(rets.size()));

  adamx::Scalars<float> floats;
  adamx::Scalars<double> doubles;
  const auto floats_or = args.get<ffi::AnyBuffer>(0), doubles_or = args.get<ffi::AnyBuffer>(1);
  if (!floats_or.has_value() || !doubles_or.has_value() ||
      !ReadScalars(*floats_or, ffi::DataType::F32, &floats))
    return Wrong("expected the scalars as float32");
  const bool has_doubles = doubles_or->element_count() != 0;
  if (has_doubles && !ReadScalars(*doubles_or, ffi::DataType::F64, &doubles))
    return Wrong("expected the scalars as float64");

  const auto norm_or = args.get<ffi::AnyBuffer>(2);
  double norm = 0;
  if (!norm_or.has_value() || !ReadNumber(*norm_or, &norm)) return Wrong("expected a norm");

  const auto keys_or = args.get<ffi::AnyBuffer>(3);
  if (!keys_or.has_value() || keys_or->element_type() != ffi::DataType::U32 ||
      (coded != 0 && static_cast<int64_t>(keys_or->element_count()) != 2 * leaf_count))
    return Wrong("expected a key of two uint32 for each leaf");
  const uint32_t* keys = static_cast<const uint32_t*>(keys_or->untyped_data());

  std::vector<Buffer> buffers;
  const ffi::Error error = ReadBuffers(args, kFirstBuffer, &buffers);
  if (error.failure()) return error;
  for (int64_t i = 0; i < updated + leaf_count; ++i) {
    auto ret = rets.get<ffi::AnyBuffer>(i);
    if (!ret.has_value()) return ret.error();
    const Buffer& arg = buffers[i < updated ? i : i + leaf_count];
    adamx::Dtype dtype;
    if ((*ret)->untyped_data() != arg.array.data || !ToDtype((*ret)->element_type(), &dtype) ||
        dtype != arg.array.dtype || static_cast<int64_t>((*ret)->element_count()) != arg.size)
      return Wrong("result " + std::to_string(i) + " does not lie in its argument's memory");
  }

  std::vector<adamx::Leaf> leaves(leaf_count);
  int64_t next_scale = first_scale;
  for (int64_t i = 0; i < leaf_count; ++i) {
    const Row& row = rows[i];
    const Buffer& g = buffers[updated + i];
    const Buffer& p = buffers[updated + leaf_count + i];
    const int64_t mu = row.mu_buffer, nu = row.nu_buffer;
    if (g.size != p.size) return Wrong("a gradient and its parameter differ in size");
    if (mu < 0 || mu >= mu_buffers || nu < 0 || nu >= nu_buffers)
      return Wrong("the table names a buffer of moments that is not there");
    // Parts follow one another, so that no two leaves share an element.
    auto part = [&](Buffer& buffer, int64_t begin, adamx::Array* array) {
      if (begin < buffer.used || begin > buffer.size || buffer.size - begin < p.size) return false;
      buffer.used = begin + p.size;
      *array = At(buffer, begin);
      return true;
    };
    adamx::Leaf& leaf = leaves[i];
    leaf.size = p.size;
    leaf.g = g.array;
    leaf.p = p.array;
    leaf.decays = row.decays != 0;
    if (!part(buffers[mu], row.mu_element, &leaf.m) ||
        !part(buffers[mu_buffers + nu], row.nu_element, &leaf.v) ||
        (amsgrad && !part(buffers[mu_buffers + nu_buffers + nu], row.nu_element, &leaf.v_max)))
      return Wrong("the moments of a leaf do not fit their buffer");
    if (!IsFloat(leaf.g) || !IsFloat(leaf.p))
      return Wrong("a gradient or a parameter is not of a floating-point dtype");
    if (row.group != 0) {
      const Buffer& m_scales = buffers[next_scale];
      const Buffer& v_scales = buffers[next_scale++ + coded];
      if (amsgrad || !ReadScales(buffers[mu], buffers[mu_buffers + nu], m_scales, v_scales,
                                 row.group, &leaf))
        return Wrong("the moments of a leaf in 8 bits do not fit their scales or their dtypes");
      std::memcpy(leaf.key, keys + 2 * i, sizeof leaf.key);
    } else if (!IsFloat(leaf.m) || !IsFloat(leaf.v) || !IsFloat(leaf.v_max)) {
      return Wrong("a moment is not of a floating-point dtype");
    }
    if (!has_doubles && adamx::InDouble(leaf))
      return Wrong("expected the scalars as float64 beside arrays of float64");
  }

  const adamx::Options options = {eps_beside_corrected, maximum_of_corrected, amsgrad, decoupled,
                                  clip};
  adamx::StepAll(adamx::BestKernels(), leaves, floats, has_doubles ? &doubles : nullptr, options,
                 norm, pool.num_threads(), [&](auto task) { pool.Schedule(std::move(task)); });
  return ffi::Error::Success();
}

ffi::Error NormHandler(ffi::ThreadPool pool, ffi::RemainingArgs args,
                       ffi::Result<ffi::AnyBuffer> norm) {
  std::vector<Buffer> buffers;
  const ffi::Error error = ReadBuffers(args, 0, &buffers);
  if (error.failure()) return error;
  if (norm->element_count() != 1) return Wrong("expected a scalar as result");
  std::vector<adamx::Leaf> leaves;
  leaves.reserve(buffers.size());
  for (const Buffer& g : buffers) {
    if (!IsFloat(g.array)) return Wrong("a gradient is not of a floating-point dtype");
    adamx::Leaf& leaf = leaves.emplace_back();
    leaf.size = g.size;
    leaf.g = g.array;
  }
  const double sum =
      adamx::SumOfSquares(adamx::BestKernels(), leaves, pool.num_threads(),
                          [&](auto task) { pool.Schedule(std::move(task)); });
  if (norm->element_type() == ffi::DataType::F32) {
    *static_cast<float*>(norm->untyped_data()) = std::sqrt(static_cast<float>(sum));
  } else if (norm->element_type() == ffi::DataType::F64) {
    *static_cast<double*>(norm->untyped_data()) = std::sqrt(sum);
  } else {
    return Wrong("expected a result of float32 or float64");
  }
  return ffi::Error::Success();
}

}  // namespace

#define ADAMX_EXPORT extern "C" __attribute__((visibility("default")))

ADAMX_EXPORT XLA_FFI_Error* adamx_step(XLA_FFI_CallFrame*);
ADAMX_EXPORT XLA_FFI_Error* adamx_norm(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(adamx_step, StepHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<bool>("eps_beside_corrected")
                                  .Attr<bool>("maximum_of_corrected")
                                  .Attr<bool>("amsgrad")
                                  .Attr<bool>("decoupled")
                                  .Attr<bool>("clip")
                                  .Attr<int64_t>("mu_buffers")
                                  .Attr<int64_t>("nu_buffers")
                                  .Attr<ffi::Span<const int64_t>>("table"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(adamx_norm, NormHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>());

// What adamx.native reads before it registers the handlers.
ADAMX_EXPORT int adamx_ffi_major() { return XLA_FFI_API_MAJOR; }
ADAMX_EXPORT int adamx_ffi_minor() { return XLA_FFI_API_MINOR; }
ADAMX_EXPORT int adamx_interface() { return kInterface; }
// One step in place on n elements of g, m, v and p, all of one dtype; `scalars` are of float64 for
// float64, of float32 otherwise. adamx.native checks the results.
ADAMX_EXPORT void adamx_probe(int dtype, int64_t n, void* g, void* m, void* v, void* p,
                              const void* scalars) {
  const auto kind = static_cast<adamx::Dtype>(dtype);
  adamx::Leaf leaf;
  leaf.size = n;
  leaf.g = {g, kind};
  leaf.m = {m, kind};
  leaf.v = {v, kind};
  leaf.p = {p, kind};
  const adamx::Options options = {true, true, false, true, false};
  const adamx::Kernels& kernels = adamx::BestKernels();
  if (kind == adamx::Dtype::kFloat64)
    kernels.step64(leaf, 0, n, *static_cast<const adamx::Scalars<double>*>(scalars), options, 0);
  else
    kernels.step32(leaf, 0, n, *static_cast<const adamx::Scalars<float>*>(scalars), options, 0);
}
ADAMX_EXPORT const char* adamx_instruction_set() { return adamx::BestKernels().name; }
