#include "amx.h"
#include "tile_kernels.h"
#include "tile_unit_amx.h"

namespace seqkernels {

const KernelTable* amx_kernels() {
    // AVX-512's kernels, but for dense products of all types but float64.
    static const KernelTable kernels = [] {
        KernelTable table = *avx512_kernels();
        table.bfloat16 = sixteen_bit_kernels_in_tiles<AmxUnit, 1, Bfloat16>();
        table.float16 = sixteen_bit_kernels_in_tiles<AmxUnit, 3, Float16>();
        multiply_in_tiles<AmxUnit, 3>(table.float32);
        multiply_in_tiles<AmxUnit, 2>(table.float32_high);
        multiply_in_tiles<AmxUnit, 1>(table.float32_medium);
        table.bfloat16_products = amx_tile_products;
        return table;
    }();
    return &kernels;
}

}  // namespace seqkernels
