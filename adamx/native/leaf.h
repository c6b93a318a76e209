// The data of a step. Nothing here depends on XLA or on the instruction set.

#ifndef ADAMX_LEAF_H_
#define ADAMX_LEAF_H_

#include <cstddef>
#include <cstdint>

namespace adamx {

enum class Dtype : uint8_t {
  kFloat32, kFloat64, kBfloat16, kFloat16, kInt8, kUint8, kUint32, kInt16
};

constexpr size_t Width(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64: return 8;
    case Dtype::kFloat32:
    case Dtype::kUint32: return 4;
    case Dtype::kInt8:
    case Dtype::kUint8: return 1;
    default: return 2;
  }
}

struct Array {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
};

constexpr int64_t kMaxGroup = 1024;  // elements that share the scales of moments in 8 bits

// One parameter: its arrays have `size` elements each and do not overlap. g is only read.
struct Leaf {
  int64_t size = 0;
  Array g, m, v, v_max, p;  // v_max.data is null without AMSGrad
  bool decays = false;      // whether weight decay applies to it

  // What p, of 16 bits, lacks of the weights, as int8 or int16; data is null where p has all.
  Array residual;
  uint32_t residual_key[2] = {0, 0};  // of the random bits of this step

  // Of moments in 8 bits: m and v are codes of int8 and uint8, in rows of `columns` elements.
  int64_t group = 0;  // consecutive elements of a row that share scales; 0 for other moments
  int64_t columns = 0;
  uint16_t* m_scales = nullptr;  // one for each group, row by row
  uint32_t* v_scales = nullptr;
  uint32_t key[2] = {0, 0};      // of the random bits of this step
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
  // On the groups whose first element is one of [begin, end), of moments in 8 bits.
  void (*step_blockwise)(const Leaf&, int64_t begin, int64_t end, const Scalars<float>&,
                         const Options&, double norm);
  double (*sum_of_squares)(const Array& g, int64_t begin, int64_t end);
};

// The best functions that this processor can run; and all that it can, the best first.
const Kernels& BestKernels();
size_t AllKernels(const Kernels* (&found)[3]);

}  // namespace adamx

#endif  // ADAMX_LEAF_H_
