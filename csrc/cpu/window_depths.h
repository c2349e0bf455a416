// The order in which the k C numbers of a window are multiplied, its depths: as they lie, tap after
// tap, of each its channels. Matrix tiles take 32 depths at once; of dilated windows, whose taps do
// not follow each other, each tap's channels are filled up to whole blocks of them.
//
// Tried without gain, in tiles: 32 channels after 32 channels, of each all taps, so that what one
// tap reads is in L1 for the next (2 % slower, three and one plane, 128 and 320 channels).
#pragma once

#include <cstdint>

#include "amx.h"
#include "kernels.h"

namespace seqkernels {

constexpr int64_t tile_depth = TileConfiguration::depth;

class WindowDepths {
 public:
    WindowDepths(const ConvolutionShape& shape, bool in_tiles)
        : taps_(shape.kernel_size),
          channels_(shape.channels),
          dilation_(shape.dilation),
          blocks_of_tap_(divide_rounding_up(channels_, tile_depth)),
          fills_taps_(in_tiles && dilation_ > 1) {}

    // Depths, those included that are of no number.
    int64_t count() const {
        return fills_taps_ ? checked_product({taps_, blocks_of_tap_, tile_depth})
                           : taps_ * channels_;
    }
    bool has_gaps() const { return count() != taps_ * channels_; }
    // Whether no block reaches beyond what it is of.
    bool are_whole_blocks() const { return !has_gaps() && count() % tile_depth == 0; }
    // The depth of a number.
    int64_t place(int64_t tap, int64_t channel) const {
        return tap * (fills_taps_ ? blocks_of_tap_ * tile_depth : channels_) + channel;
    }
    // Of 32 depths, where the first one's number is, behind the window's first one, in positions
    // that follow each other without a gap.
    int64_t blocks() const { return divide_rounding_up(count(), tile_depth); }
    int64_t offset(int64_t block) const {
        if (!fills_taps_) return block * tile_depth;
        return block / blocks_of_tap_ * dilation_ * channels_ + block % blocks_of_tap_ * tile_depth;
    }

 private:
    const int64_t taps_;
    const int64_t channels_;
    const int64_t dilation_;
    const int64_t blocks_of_tap_;
    const bool fills_taps_;
};

}  // namespace seqkernels
