// Which of the compiled instruction sets this processor has.

#include "leaf.h"

namespace adamx {

namespace baseline {
extern const Kernels kKernels;
}

#ifdef ADAMX_X86
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
#endif

size_t AllKernels(const Kernels* (&found)[3]) {
  size_t count = 0;
#ifdef ADAMX_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    found[count++] = &avx512::kKernels;
  if (has_avx2) found[count++] = &avx2::kKernels;
#endif
  found[count++] = &baseline::kKernels;
  return count;
}

const Kernels& BestKernels() {
  static const Kernels* const best = [] {
    const Kernels* found[3];
    AllKernels(found);
    return found[0];
  }();
  return *best;
}

}  // namespace adamx
