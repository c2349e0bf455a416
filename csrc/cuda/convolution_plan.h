// How the tiled kernels cut a convolution into blocks: one pure function of shape, layout and GPU.
#pragma once

#include <cstdint>

#include "../core/convolution.h"
#include "tile_sizes.h"

namespace seqkernels::cuda {

// How the kernel in convolution_warpgroup.h cuts a convolution: a tile is 64 windows of one pool,
// or of neighbouring small ones. All tiles of the batch, sample after sample, are cut into runs; a
// warpgroup of a block takes one after another.
struct WarpgroupPlan {
    int filters;  // of a block, 128, 64, 32 or 16; 0: the convolution is left to the other kernel
    int chunks;   // of 64 channels
    int last_products;  // of 16 channels, in the last chunk; 4 in the others
    int stages;         // of a warpgroup, each a chunk of a tile's rows
    int rows;           // positions that fit in a stage, in whole eights
    int64_t filter_tiles;
    int64_t blocks;  // with the same filters
    int tiles_of_pool;
    int pools;            // of a sample; those that share a tile are one
    int pools_in_tile;    // 0: a pool has tiles of its own
    int windows_of_pool;  // from one pool's first window to its end
    int windows_between;  // and to the next pool's first
    int added_windows;    // a sample's windows minus its length, unless that is below 0
    int64_t tiles;
    int busy_warpgroups;  // of a block: those that have a run
    int64_t run;          // tiles of a run
    int64_t parts;        // most runs that share a pool

    constexpr int warpgroups() const { return warpgroups_of_block(filters); }
    constexpr int64_t runs() const { return divide_rounding_up(tiles, run); }
    // Shared memory: the filters, which lie so in scratch for each tile of them; and for each that
    // has a run its stages, and what its warps exchange, a winner for each and filter, or columns
    // of small pools.
    constexpr int64_t filter_bytes(int64_t kernel_size) const {
        return kernel_size * chunks * filters * row_bytes;
    }
    constexpr int64_t stage_bytes() const { return int64_t{rows} * row_bytes; }
    constexpr int64_t exchange_bytes() const {
        return pools_in_tile == 0 ? int64_t{4} * filters * 8
                                  : int64_t{4} * warpgroup_windows * pooled_stride;
    }
    constexpr int64_t shared_bytes(int64_t kernel_size) const {
        return shared_alignment + filter_bytes(kernel_size) +
               busy_warpgroups * (stages * stage_bytes() + exchange_bytes());
    }
};

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
    WarpgroupPlan warpgroup;

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

// The winners of a split pool's parts, (N, P, splits or parts, F) each.
struct PartialWinners {
    float* values;
    int32_t* windows;
};

// What a plan has to know of a GPU.
struct GpuTraits {
    int multiprocessors;
    bool has_warpgroups;   // that take products, and code for them
    int64_t shared_bytes;  // that a block may have
    // Of the filters that a block of warpgroups may have: narrowed to compare them.
    int least_filters = 16;
    int most_filters = 128;
};

// The widest copies, of 16 bytes to `least`, that bring rows of channels as they lie; 0: none do.
int copy_bytes_in_place(const ConvolutionShape& shape, const SequenceView& input,
                        int64_t element_bytes, int64_t least);

ConvolutionPlan plan_convolution(const ConvolutionShape& shape, const SequenceView& input,
                                 int64_t element_bytes, const GpuTraits& gpu);

// Memory that the tiled kernels of a plan work in.
template <class T>
struct TiledScratch {
    T* filters;  // (chunks, filters_padded, 128 bytes); for warpgroups (filter_tiles, filter_bytes)
    T* repacked;  // (N, L, channels), or null
    PartialWinners partial;
};

// Queues the tiled kernels of a plan. Each type is a translation unit of its own.
template <class T>
void convolution_in_tiles(const ConvolutionForward<T>& call, const ConvolutionPlan& plan, bool tf32,
                          const TiledScratch<T>& scratch, void* stream);

// The same by products of warpgroups, where the plan has some.
template <class T>
void convolution_in_warpgroups(const ConvolutionForward<T>& call, const ConvolutionPlan& plan,
                               const TiledScratch<T>& scratch, void* stream);

}  // namespace seqkernels::cuda
