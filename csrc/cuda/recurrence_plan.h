// How the kernel that stays for a whole sequence cuts a recurrence into blocks: one pure function
// of shape and GPU.
#pragma once

#include <cstdint>

#include "../core/range.h"
#include "../core/recurrence.h"

namespace seqkernels::cuda {

constexpr int persistent_warps = 8;
constexpr int rows_of_matrix = 16;  // samples in a product of the matrix units
constexpr int most_row_tiles = 4;   // such tiles of samples in a block

struct RecurrencePlan {
    bool fits;          // otherwise a kernel is launched for every step
    int units;          // hidden units of a block, whose recurrent weights it holds: 8 or 16
    int64_t row_tiles;  // of samples of a block
    int64_t slices;     // of the batch, which know nothing of each other

    constexpr int64_t rows() const { return row_tiles * rows_of_matrix; }
    constexpr int64_t unit_blocks(int64_t hidden) const {
        return divide_rounding_up(hidden, units);
    }
    constexpr int64_t blocks(int64_t hidden) const { return unit_blocks(hidden) * slices; }
};

// Steps of depth, 16 hidden units each, of a recurrent product.
constexpr int64_t depth_steps(int64_t hidden) { return divide_rounding_up(hidden, 16); }

// Columns of a block's partial sums, padded so that 8 rows of them fall into different banks.
constexpr int sums_stride(int columns) { return columns + 8; }

// Shared memory of a block with so many columns, gates times units: weights of 16 bits, and a
// product's partial sums of each warp.
constexpr int64_t persistent_shared_bytes(int64_t hidden, int columns) {
    return depth_steps(hidden) * columns * 32 +
           int64_t{persistent_warps} * rows_of_matrix * sums_stride(columns) * 4;
}

RecurrencePlan plan_recurrence(const RecurrenceShape& shape, int multiprocessors,
                               int64_t shared_bytes_of_block);

}  // namespace seqkernels::cuda
