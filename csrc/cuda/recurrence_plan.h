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

constexpr int backward_units = 16;

enum class Pass { forward, backward };

struct RecurrencePlan {
    bool fits;            // otherwise a kernel is launched for every step
    int units;            // hidden units of a block: 8 or 16
    int columns;          // of its weights: all gates of them forward, the units backward
    int64_t depth;        // of the product: H forward, G H backward
    int64_t unit_blocks;  // blocks of a slice
    int64_t row_tiles;    // of samples of a block
    int64_t slices;       // of the batch, which know nothing of each other

    constexpr int64_t rows() const { return row_tiles * rows_of_matrix; }
    constexpr int64_t blocks() const { return unit_blocks * slices; }
};

// Steps of 16 in a product's depth.
constexpr int64_t depth_steps(int64_t depth) { return divide_rounding_up(depth, 16); }

// Columns of a block's partial sums, padded so that rows of them fall into different banks, two by
// two: 8 columns more would spread them fully, and leave an LSTM of 1536 units no room.
constexpr int sums_stride(int columns) { return columns + 4; }

// Shared memory of a block: weights of 16 bits, and a product's partial sums of each warp.
constexpr int64_t persistent_shared_bytes(const RecurrencePlan& plan) {
    return depth_steps(plan.depth) * plan.columns * 32 +
           int64_t{persistent_warps} * rows_of_matrix * sums_stride(plan.columns) * 4;
}

RecurrencePlan plan_recurrence(const RecurrenceShape& shape, Pass pass, int multiprocessors,
                               int64_t shared_bytes_of_block);

}  // namespace seqkernels::cuda
