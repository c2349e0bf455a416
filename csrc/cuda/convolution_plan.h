// How the tiled kernels cut a convolution into blocks: one pure function of shape, layout and GPU.
#pragma once

#include <cstdint>

#include "../core/convolution.h"

namespace seqkernels::cuda {

struct ConvolutionPlan {
    int tile;  // windows and filters of a tile, 128 or 64 each
    // Channels as they are computed on, in whole 4 bytes: those beyond C are zeros.
    int64_t channels;
    // Whether the input is first copied to (N, L, channels), contiguous: where it does not lie so
    // that asynchronous copies can read it.
    bool is_repacked;
    int copy_bytes;  // of an asynchronous copy of input: 16, 8 or 4
    // The k * channels numbers of a window come in chunks of 128 bytes, so many. Their order
    // depends on the shape alone, and so do the bits of a sum: tap after tap, chunks running on
    // from one to the next; or, where the channels fill their chunks, all taps of a chunk of
    // channels before the next.
    int64_t chunks;
    bool is_chunk_of_one_tap;
    int64_t filter_tiles;
    // Small pools: a tile's convolution is pooled in shared memory, so many pools a tile. 0: a
    // block computes one pool, tile after tile, or one of `splits` parts of it.
    int64_t pools_in_tile;
    int64_t splits;

    constexpr int64_t filters_padded() const { return filter_tiles * tile; }
    // Pieces of work of a sample and a filter tile.
    constexpr int64_t stretches(const ConvolutionShape& shape) const {
        return pools_in_tile == 0 ? shape.pooled * splits
                                  : divide_rounding_up(shape.pooled, pools_in_tile);
    }
    constexpr int64_t items(const ConvolutionShape& shape) const {
        return shape.batch * stretches(shape) * filter_tiles;
    }
};

// The winners of a split pool's parts, (N, P, splits, F) each.
struct PartialWinners {
    float* values;
    int32_t* windows;
};

ConvolutionPlan plan_convolution(const ConvolutionShape& shape, const SequenceView& input,
                                 int64_t element_bytes, int multiprocessors);

// Memory that the tiled kernels of a plan work in.
template <class T>
struct TiledScratch {
    T* filters;   // (chunks, filters_padded, 128 bytes)
    T* repacked;  // (N, L, channels), or null
    PartialWinners partial;
};

// Queues the tiled kernels of a plan. Each type is a translation unit of its own.
template <class T>
void convolution_in_tiles(const ConvolutionForward<T>& call, const ConvolutionPlan& plan, bool tf32,
                          const TiledScratch<T>& scratch, void* stream);

}  // namespace seqkernels::cuda
