#include "sixteen_bit.h"
#include "tile_product.h"

namespace seqkernels {

const KernelTable* amx_kernels() {
    // AVX-512's kernels, but for products of bfloat16.
    static const KernelTable kernels = [] {
        KernelTable table = *avx512_kernels();
        table.bfloat16 = sixteen_bit_kernels<Avx512Vector<float>, Bfloat16, TileProduct>();
        return table;
    }();
    return &kernels;
}

}  // namespace seqkernels
