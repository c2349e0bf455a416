// Sizes that the tiles in shared memory and the plans for them share.
#pragma once

namespace seqkernels::cuda {

constexpr int row_bytes = 128;
constexpr int piece_bytes = 16;
constexpr int pieces_in_row = row_bytes / piece_bytes;

}  // namespace seqkernels::cuda
