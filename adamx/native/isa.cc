// The kernels of one instruction set: compiled once for each, with its flags (CMakeLists.txt).

#include "blockwise.h"

#define ADAMX_TEXT_(x) #x
#define ADAMX_TEXT(x) ADAMX_TEXT_(x)

namespace adamx::ADAMX_ISA {

extern const Kernels kKernels;
const Kernels kKernels = {ADAMX_TEXT(ADAMX_ISA), &Step<float>, &Step<double>, &StepBlockwise,
                          &SumOfSquares};

}  // namespace adamx::ADAMX_ISA
