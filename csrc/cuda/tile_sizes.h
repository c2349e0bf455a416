// Sizes that the tiles in shared memory and the plans for them share.
#pragma once

namespace seqkernels::cuda {

constexpr int row_bytes = 128;
constexpr int piece_bytes = 16;
constexpr int pieces_in_row = row_bytes / piece_bytes;

// Blocks with such tiles that share a multiprocessor. Two of 128 would, on Hopper, spill the
// registers that hold sums and maxima (up to 600 bytes a thread); elsewhere their shared memory is
// too large.
constexpr int blocks_of_multiprocessor(int tile) { return tile == 128 ? 1 : 2; }

}  // namespace seqkernels::cuda
