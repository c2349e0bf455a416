#include "kernel_table.h"
#include "vector_avx512.h"

namespace seqkernels {

const KernelTable* avx512_kernels() { return &TableFor<Avx512Vector>::table; }

}  // namespace seqkernels
