// Which kernels compute a convolution's gradients, and how they cut them: pure functions of shape,
// layout and GPU.
#pragma once

#include <cstdint>

#include "../core/convolution.h"

namespace seqkernels::cuda {

// Whether the gradients are computed as dense products (convolution_dense_gradients.h), of which
// there are pool_stride times as many multiply-adds as of winners. By those
// (convolution_backward.h) a multiply-add takes a number from L2: some 2.5 10^12 a second of 16-bit
// numbers, 1.2 of float32; in the matrix units 100 and more, in float32 20. Of that ratio a third
// to a half is taken, for what the dense products spend on launches and on zeros that fill tiles.
//
// By nothing that a sample's own gradient must not depend on: the batch, or the length.
constexpr bool pays_dense(const ConvolutionShape& shape, int64_t element_bytes) {
    const int64_t largest_stride = element_bytes == 2 ? 16 : 8;
    const int64_t reach = shape.dilation * (shape.kernel_size - 1);
    // Tiles are of 128 filters and columns: with less than a quarter of them little is left.
    constexpr int64_t least = 32;
    // A window looks at every pool that it belongs to.
    constexpr int64_t most_pools = 8;
    return shape.pool_size > 0 && shape.pool_stride <= largest_stride &&
           shape.pool_size <= most_pools * shape.pool_stride && shape.filters >= least &&
           shape.channels >= least &&
           // The input's gradient is a convolution of stride 1 with what is left of the padding.
           shape.stride == 1 && shape.padding_left <= reach && shape.padding_right <= reach &&
           // Weights are counted in 32 bits.
           shape.filters * shape.kernel_size * shape.channels <= 0x7FFFFFFF;
}

// Steps of a part of the depth of a product of so many tiles: parts for some two blocks of a
// multiprocessor, but none of less than 16 steps, since each writes a tile of sums.
constexpr int64_t steps_of_split(int64_t tiles, int64_t steps, int multiprocessors) {
    const int64_t wanted = larger(1, 2 * int64_t{multiprocessors} / larger(1, tiles));
    return larger(16, divide_rounding_up(steps, wanted));
}

}  // namespace seqkernels::cuda
