#include "kernel_table.h"
#include "sixteen_bit.h"
#include "tile_product.h"
#include "tile_weight_gradient.h"

namespace seqkernels {

const KernelTable* amx_kernels() {
    // AVX-512's kernels, but for products of bfloat16, and of float32 by three of them.
    static const KernelTable kernels = [] {
        using Vector = Avx512Vector<float>;
        KernelTable table = *avx512_kernels();
        table.bfloat16 =
            sixteen_bit_kernels<Vector, Bfloat16, TileProduct<1>, TileWeightGradient<1>>();
        table.float16 =
            sixteen_bit_kernels<Vector, Float16, TileProduct<3>, TileWeightGradient<3>>();
        table.float32.convolution_forward = convolution_forward<Vector, TileProduct<3>>;
        table.float32.recurrence_forward = recurrence_forward<Vector, TileProduct<3>>;
        table.float32.recurrence_backward =
            recurrence_backward<Vector, TileProduct<3>, TileWeightGradient<3>>;
        return table;
    }();
    return &kernels;
}

}  // namespace seqkernels
