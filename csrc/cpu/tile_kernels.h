// The kernels of dense products in tiles, for a table of kernels by vectors of AVX-512.
#pragma once

#include "convolution_bank_forward.h"
#include "screened_windows.h"
#include "sixteen_bit.h"
#include "tile_convolution_input_gradient.h"
#include "tile_convolution_weight_gradient.h"
#include "tile_product.h"
#include "tile_weight_gradient.h"
#include "vector_kernels_avx512.h"

namespace seqkernels {

// Whether the gradients of a convolution are faster as dense products than winner by winner: with
// strides and dilations of 1, and pools that neither overlap nor are large (the unit says what is);
// nor, with three planes, where windows would leave more than a quarter of the tiles empty.
template <class Unit, int planes>
inline bool pays_dense(const ConvolutionShape& shape) {
    constexpr int64_t rows = TileProduct<Unit, planes>::rows;
    const int64_t rows_of_tiles = divide_rounding_up(shape.length, rows) * rows;
    return shape.stride == 1 && shape.dilation == 1 && shape.pool_size > 0 &&
           shape.pool_stride >= shape.pool_size &&
           shape.pool_stride <= Unit::template largest_dense_pool<planes> &&
           (planes < 3 || 4 * shape.length >= 3 * rows_of_tiles);
}

template <class Unit, int planes, class Number>
void convolution_backward_in_tiles(const ConvolutionBackward<Number>& arguments, int threads) {
    using Vector = Avx512Vector<float>;
    if (!pays_dense<Unit, planes>(arguments.shape)) {
        return convolution_backward<Vector, Number>(arguments, threads);
    }
    using Kernel = ConvolutionBackwardKernel<Vector, Number,
                                             TileConvolutionInputGradient<Unit, planes, Number>,
                                             TileConvolutionWeightGradient<Unit, planes, Number>>;
    Kernel(arguments).run(threads);
}

template <class Unit, int planes, class Narrow>
constexpr SixteenBitKernels<Narrow> sixteen_bit_kernels_in_tiles() {
    return sixteen_bit_kernels<Avx512Vector<float>, Narrow, TileProduct<Unit, planes>,
                               TileWeightGradient<Unit, planes>,
                               convolution_backward_in_tiles<Unit, planes, Narrow>>();
}

template <class Unit, int planes>
void multiply_in_tiles(Operations<float>& operations) {
    using Vector = Avx512Vector<float>;
    using Product = TileProduct<Unit, planes>;
    operations.convolution_forward = convolution_forward<Vector, Product>;
    operations.convolution_backward = convolution_backward_in_tiles<Unit, planes, float>;
    operations.convolution_bank_forward = convolution_bank_forward<Vector, Product>;
    operations.recurrence_forward = recurrence_forward<Vector, Product>;
    operations.recurrence_backward =
        recurrence_backward<Vector, Product, TileWeightGradient<Unit, planes>>;
}

}  // namespace seqkernels
