#include "convolution_plan.h"

#include "tile_sizes.h"

namespace seqkernels::cuda {
namespace {

// The widest copies that a row of so many bytes is made up of.
int widest_copy(int64_t bytes_of_row) {
    return bytes_of_row % 16 == 0 ? 16 : bytes_of_row % 8 == 0 ? 8 : 4;
}

// The widest copies that bring the input as it lies, 0 if there are none.
int copy_bytes_in_place(const ConvolutionShape& shape, const SequenceView& input,
                        int64_t element_bytes) {
    if (input.stride_channel != 1 && shape.channels > 1) return 0;
    const auto address = reinterpret_cast<uintptr_t>(input.numbers.data);
    for (int bytes = widest_copy(shape.channels * element_bytes); bytes >= 4; bytes /= 2) {
        const auto fits = [&](int64_t count, int64_t stride) {
            return count <= 1 || stride * element_bytes % bytes == 0;
        };
        if (address % static_cast<uintptr_t>(bytes) == 0 &&
            shape.channels * element_bytes % bytes == 0 && fits(shape.batch, input.stride_batch) &&
            fits(shape.length, input.stride_length)) {
            return bytes;
        }
    }
    return 0;
}

}  // namespace

ConvolutionPlan plan_convolution(const ConvolutionShape& shape, const SequenceView& input,
                                 int64_t element_bytes, int multiprocessors) {
    ConvolutionPlan plan{};
    constexpr int64_t least_copy = 4;
    const int64_t bytes_of_row =
        larger(1, divide_rounding_up(shape.channels * element_bytes, least_copy)) * least_copy;
    plan.channels = bytes_of_row / element_bytes;
    plan.copy_bytes = copy_bytes_in_place(shape, input, element_bytes);
    plan.is_repacked = shape.channels == 0 || plan.copy_bytes == 0;
    if (plan.is_repacked) plan.copy_bytes = widest_copy(bytes_of_row);
    // With the taps of a chunk following each other a window's numbers are read from L1 by all but
    // the first. Up to an eighth of a chunk's work may be zeros for that.
    const int64_t chunks_of_tap = divide_rounding_up(bytes_of_row, row_bytes);
    plan.is_chunk_of_one_tap =
        shape.kernel_size == 1 || 8 * chunks_of_tap * row_bytes <= 9 * bytes_of_row;
    plan.chunks = plan.is_chunk_of_one_tap
                      ? shape.kernel_size * chunks_of_tap
                      : divide_rounding_up(shape.kernel_size * bytes_of_row, row_bytes);

    const int64_t windows = shape.windows(shape.length);
    const int64_t pool_windows = shape.pool_size == 0 ? windows : shape.pool_size;
    // Several pools share a tile while they waste little of it: pools that overlap or follow each
    // other closely, of up to a quarter of a tile.
    const auto pools_in = [&](int64_t tile) -> int64_t {
        if (shape.pool_size == 0 || shape.pool_size > tile / 4 || shape.pool_stride > tile / 4) {
            return 0;
        }
        return (tile - shape.pool_size) / shape.pool_stride + 1;
    };
    const auto blocks = [&](int64_t tile) {
        const int64_t pools = pools_in(tile);
        const int64_t tiles = pools == 0 ? shape.pooled * divide_rounding_up(pool_windows, tile)
                                         : divide_rounding_up(shape.pooled, pools);
        return shape.batch * tiles * divide_rounding_up(shape.filters, tile);
    };
    // The wide tile reads half the operand bytes for a multiply-add; worth it if it is filled, and
    // if there is one for every multiprocessor.
    const bool is_wide = shape.filters > 64 &&
                         (shape.pool_size != 0 ? windows : pool_windows) > 64 &&
                         blocks(128) >= multiprocessors;
    plan.tile = is_wide ? 128 : 64;
    plan.filter_tiles = divide_rounding_up(shape.filters, plan.tile);
    plan.pools_in_tile = pools_in(plan.tile);
    plan.splits = 1;
    if (plan.pools_in_tile == 0) {
        const int64_t wanted = blocks_of_multiprocessor(plan.tile) * int64_t{multiprocessors};
        const int64_t unsplit = larger(1, shape.batch * shape.pooled * plan.filter_tiles);
        const int64_t tiles = larger(1, divide_rounding_up(pool_windows, plan.tile));
        plan.splits = smaller(tiles, larger(1, wanted / unsplit));
    }
    return plan;
}

}  // namespace seqkernels::cuda
