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

// The kernel of warpgroups. Those of a block share its filters; while one waits or compares, the
// others keep the matrix units busy. With 128 filters a thread takes more than the 168 registers
// that three leave it.
constexpr int warpgroups_of_block(int filters) { return filters == 128 ? 2 : 3; }
constexpr int warpgroup_windows = 64;  // of a tile, as many as a product takes
// A warp copies every fourth chunk, and is to have copied it before it begins the next.
constexpr int most_warpgroup_stages = 5;
constexpr int shared_alignment = 1024;  // that operands in shared memory lie by
// Small pools are taken from that many columns of a tile's convolution in shared memory at a time,
// rows so many words apart that two words each of 4 rows and 4 lanes fall into different banks.
constexpr int pooled_columns = 32;
constexpr int pooled_stride = pooled_columns + 8;

}  // namespace seqkernels::cuda
