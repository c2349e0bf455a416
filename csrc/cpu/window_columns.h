// The k C numbers of a window, its columns, as runs of numbers side by side in a sequence, and
// those cut into blocks.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "product.h"
#include "scaled_rows.h"

namespace seqkernels {

template <class Vector>
class WindowColumns {
 public:
    // A block of columns: [column, column + count) of the window, `offset` behind its first number.
    struct Block {
        int64_t column;
        int64_t count;
        int64_t offset;
    };

    // For a sequence whose positions lie `stride_length` apart, channels side by side; blocks of as
    // many columns as registers hold sums of, so that what many sums read of them stays in L1; or,
    // pooled over time, where a window is in few sums, whole runs.
    WindowColumns(const ConvolutionShape& shape, int64_t stride_length)
        : shape_(shape),
          stride_length_(stride_length),
          is_one_run_(shape.dilation == 1 && stride_length == shape.channels),
          run_elements_(is_one_run_ ? shape.kernel_size * shape.channels : shape.channels),
          run_vectors_(divide_rounding_up(run_elements_, Vector::width)),
          blocks_in_run_(divide_rounding_up(
              run_vectors_, shape.pool_size == 0 ? larger(1, run_vectors_) : scaled_row_vectors)),
          widest_(divide_rounding_up(run_vectors_, larger(1, blocks_in_run_)) * Vector::width) {}

    int64_t blocks() const { return (is_one_run_ ? 1 : shape_.kernel_size) * blocks_in_run_; }
    // Columns of the widest block, in whole vectors.
    int64_t widest() const { return widest_; }
    Block block(int64_t index) const {
        const int64_t run = index / blocks_in_run_;
        const Range vectors = part_of(run_vectors_, 1, index % blocks_in_run_, blocks_in_run_);
        const int64_t first = vectors.begin * Vector::width;
        return {run * run_elements_ + first,
                smaller(run_elements_, vectors.end * Vector::width) - first,
                run * shape_.dilation * stride_length_ + first};
    }

    // Calls function(place, tap, channel, count) for each stretch of one tap's channels within a
    // block, `place` being where in the block it begins.
    template <class Function>
    void for_each_tap(const Block& block, Function&& function) const {
        for (int64_t place = 0; place < block.count;) {
            const int64_t column = block.column + place;
            const int64_t channel = column % shape_.channels;
            const int64_t count = smaller(shape_.channels - channel, block.count - place);
            function(place, column / shape_.channels, channel, count);
            place += count;
        }
    }

 private:
    const ConvolutionShape& shape_;
    const int64_t stride_length_;
    const bool is_one_run_;
    const int64_t run_elements_;
    const int64_t run_vectors_;
    const int64_t blocks_in_run_;
    const int64_t widest_;
};

// Pools worked on together: with so many windows a block of columns of their input stays in L1, and
// of large pools so many that a sum is worth reading and writing back.
static inline int64_t pools_in_block(const ConvolutionShape& shape) {
    constexpr int64_t windows = 96;
    constexpr int64_t least = 24;
    return shape.pool_size == 0 ? 32 : larger(least, windows / shape.pool_size);
}

}  // namespace seqkernels
