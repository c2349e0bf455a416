#include "kernel_table.h"
#include "vector_avx2.h"

namespace seqkernels {

const KernelTable* avx2_kernels() { return &TableFor<Avx2Vector>::table; }

}  // namespace seqkernels
