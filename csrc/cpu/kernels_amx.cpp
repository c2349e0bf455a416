#include "kernel_table.h"
#include "sixteen_bit.h"
#include "tile_convolution_input_gradient.h"
#include "tile_convolution_weight_gradient.h"
#include "tile_product.h"
#include "tile_weight_gradient.h"

namespace seqkernels {
namespace {

using Vector = Avx512Vector<float>;

// Whether the gradients of a convolution are faster as dense products than winner by winner: with
// strides and dilations of 1, and pools that neither overlap nor are large; nor, with three planes,
// where windows would leave more than a quarter of the tiles empty. Measured, times faster (family
// 6, model 167, two threads, backward of 16 samples of 256 positions of 128 channels, 128 filters
// of 3):
//   pools of        2     3     4     6     8    12
//   one plane     2.9   2.9   2.8   2.8   2.0   1.2
//   three planes  1.8   1.4   1.2    .8    .4    .5
template <int planes>
inline bool pays_dense(const ConvolutionShape& shape) {
    constexpr int64_t largest_pool = planes == 1 ? 12 : planes == 2 ? 6 : 4;
    constexpr int64_t rows = TileProduct<planes>::rows;
    const int64_t rows_of_tiles = divide_rounding_up(shape.length, rows) * rows;
    return shape.stride == 1 && shape.dilation == 1 && shape.pool_size > 0 &&
           shape.pool_stride >= shape.pool_size && shape.pool_stride <= largest_pool &&
           (planes < 3 || 4 * shape.length >= 3 * rows_of_tiles);
}

template <class Number, int planes>
void convolution_backward_in(const ConvolutionBackward<Number>& arguments, int threads) {
    if (!pays_dense<planes>(arguments.shape)) {
        return convolution_backward<Vector, Number>(arguments, threads);
    }
    using Kernel =
        ConvolutionBackwardKernel<Vector, Number, TileConvolutionInputGradient<planes, Number>,
                                  TileConvolutionWeightGradient<planes, Number>>;
    Kernel(arguments).run(threads);
}

template <class Narrow, int planes>
constexpr SixteenBitKernels<Narrow> sixteen_bit_kernels_in() {
    return sixteen_bit_kernels<Vector, Narrow, TileProduct<planes>, TileWeightGradient<planes>,
                               convolution_backward_in<Narrow, planes>>();
}

template <int planes>
void multiply_in(Operations<float>& operations) {
    operations.convolution_forward = convolution_forward<Vector, TileProduct<planes>>;
    operations.convolution_backward = convolution_backward_in<float, planes>;
    operations.recurrence_forward = recurrence_forward<Vector, TileProduct<planes>>;
    operations.recurrence_backward =
        recurrence_backward<Vector, TileProduct<planes>, TileWeightGradient<planes>>;
}

}  // namespace

const KernelTable* amx_kernels() {
    // AVX-512's kernels, but for dense products of all types but float64.
    static const KernelTable kernels = [] {
        KernelTable table = *avx512_kernels();
        table.bfloat16 = sixteen_bit_kernels_in<Bfloat16, 1>();
        table.float16 = sixteen_bit_kernels_in<Float16, 3>();
        multiply_in<3>(table.float32);
        multiply_in<2>(table.float32_high);
        multiply_in<1>(table.float32_medium);
        return table;
    }();
    return &kernels;
}

}  // namespace seqkernels
