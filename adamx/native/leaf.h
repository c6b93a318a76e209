// The data of a step. Nothing here depends on XLA or on the instruction set.

#ifndef ADAMX_LEAF_H_
#define ADAMX_LEAF_H_

#include <cstddef>
#include <cstdint>

namespace adamx {

enum class Dtype : uint8_t { kFloat32, kFloat64, kBfloat16, kFloat16 };

constexpr size_t Width(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

struct Array {
  void* data;
  Dtype dtype;
};

// One parameter: its arrays have `size` elements each and do not overlap. g is only read.
struct Leaf {
  int64_t size;
  Array g, m, v, v_max, p;  // v_max.data is null without AMSGrad
  bool decays;              // whether weight decay applies to it
};

// The numbers of a step: the fields of numerics.Scalars, in their order.
template <class T>
struct Scalars {
  T b1, one_minus_b1;            // each rounded separately
  T b2, one_minus_b2;            //
  T eps, eps_root;               //
  T m_correction, v_correction;  // 1 - b1^t and 1 - b2^t
  T rate;                        // what the direction is multiplied by: minus the learning rate
  T weight_decay;                //
  T max_norm;                    // the largest global norm
};

struct Options {
  bool eps_beside_corrected;  // eps is added to the root of v / v_correction, not of v
  bool maximum_of_corrected;  // AMSGrad keeps the maximum of v / v_correction, not of v
  bool amsgrad;
  bool decoupled;  // weight decay shrinks the parameter, or else is added to the gradient
  bool clip;       // by the global norm
};

// The functions of one instruction set. Each works on elements [begin, end) of a leaf.
struct Kernels {
  const char* name;
  // `norm` is the global norm of the gradients if options.clip, and unused otherwise.
  void (*step32)(const Leaf&, int64_t begin, int64_t end, const Scalars<float>&,
                 const Options&, double norm);
  void (*step64)(const Leaf&, int64_t begin, int64_t end, const Scalars<double>&,
                 const Options&, double norm);
  double (*sum_of_squares)(const Array& g, int64_t begin, int64_t end);
};

// The best functions that this processor can run; and all that it can, the best first.
const Kernels& BestKernels();
size_t AllKernels(const Kernels* (&found)[3]);

}  // namespace adamx

#endif  // ADAMX_LEAF_H_
