// The step as custom calls of XLA: they check their arguments, and pass them to the kernel.
//
// adamx_step: Arguments are the scalars of the step in float32 and in float64 (the latter empty
// unless an array is of float64), the global norm of the gradients as a scalar of either (read if
// they are clipped), a row of keys for each leaf, the buffers of mu, of nu and, with AMSGrad, of
// nu_max, the scales of mu for each leaf with moments in 8 bits, then those of nu, the residual of
// each leaf that has one, then each leaf's gradient, then each leaf's parameter. Results are all
// but the gradients, each in the memory of its argument. `table` has a Row for each leaf. A row of
// keys begins with two uint32 for moments in 8 bits, and ends with two for the residual. Either
// may be absent if no leaf has such moments, or none a residual.
//
// adamx_norm: Arguments are gradients, the result is their global norm, a scalar.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"

namespace {

namespace ffi = xla::ffi;
using adamx::At, adamx::Buffer, adamx::IsFloat, adamx::kFirstBuffer, adamx::kRowLength;
using adamx::ReadBuffers, adamx::ReadNumber, adamx::ReadResidual, adamx::ReadScalars;
using adamx::ReadScales, adamx::Row, adamx::ToDtype, adamx::Wrong;

// The version of the arguments and attributes. It is in the names under which the handlers are
// registered, so that a program that was compiled for another version does not find them.
constexpr int kInterface = 4;

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
  int64_t coded = 0, kept = 0;  // leaves with moments in 8 bits; with residuals
  for (const Row& row : rows) {
    coded += row.group != 0;
    kept += row.residual_bits != 0;
  }
  const int64_t first_scale = mu_buffers + nu_buffers * (moments - 1);
  const int64_t first_residual = first_scale + 2 * coded;
  const int64_t updated = first_residual + kept;  // buffers of all but gradients and parameters
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
  const int64_t key_count = keys_or.has_value() ? keys_or->element_count() : 0;
  const int64_t key_length = leaf_count == 0 ? 0 : key_count / leaf_count;  // of a leaf's row
  if (!keys_or.has_value() || keys_or->element_type() != ffi::DataType::U32 ||
      key_length < 2 * (coded != 0) + 2 * (kept != 0) ||
      (key_length != 0 && key_length * leaf_count != key_count))
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
  int64_t next_scale = first_scale, next_residual = first_residual;
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
      std::memcpy(leaf.key, keys + key_length * i, sizeof leaf.key);
    } else if (!IsFloat(leaf.m) || !IsFloat(leaf.v) || !IsFloat(leaf.v_max)) {
      return Wrong("a moment is not of a floating-point dtype");
    }
    if (row.residual_bits != 0) {
      if (!ReadResidual(buffers[next_residual++], row.residual_bits, &leaf))
        return Wrong("a residual does not fit its parameter");
      std::memcpy(leaf.residual_key, keys + key_length * (i + 1) - 2, sizeof leaf.residual_key);
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
