#include "kernel_table.h"
#include "vector_scalar.h"

namespace seqkernels {

const KernelTable* scalar_kernels() { return &TableFor<ScalarVector>::table; }

}  // namespace seqkernels
