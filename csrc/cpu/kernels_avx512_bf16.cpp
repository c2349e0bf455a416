#include "tile_kernels.h"
#include "tile_unit_vectors.h"

namespace seqkernels {

const KernelTable* avx512_bf16_kernels() {
    // AVX-512's kernels, but for dense products of bfloat16: to multiply two or three planes of
    // numbers would be slower than to multiply them as float32.
    static const KernelTable kernels = [] {
        KernelTable table = *avx512_kernels();
        table.bfloat16 = sixteen_bit_kernels_in_tiles<VectorUnit, 1, Bfloat16>();
        multiply_in_tiles<VectorUnit, 1>(table.float32_medium);
        table.bfloat16_products = VectorUnit::products_in_registers;
        return table;
    }();
    return &kernels;
}

}  // namespace seqkernels
