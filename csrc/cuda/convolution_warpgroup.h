// Convolution, bias, activation and max-pooling of 16-bit types by products of warpgroups (wgmma),
// for windows that follow each other position by position (a stride of 1).
//
// A block keeps a tile of filters in shared memory for as long as it runs. Each of its warpgroups
// takes a run of tiles of 64 windows on its own. Of a tile, 64 channels of all positions that its
// windows cover make a stage, which comes in by asynchronous copies, `stages - 1` chunks ahead; the
// left operand of tap t is that stage from row t * dilation on, so that a row is brought once for
// all taps. Sums of a tile stay in registers, and so do maxima from tile to tile of a pool.
//
// Shapes, strides and ownership: ConvolutionForward in csrc/core/convolution.h. Scratch, owned by
// the caller: TiledScratch: the filters as the blocks' right operands; the input as (N, L, C) where
// it does not lie so, in rows aligned to 4 bytes; where runs end within a pool, the winners of its
// parts, (N, P, parts, F), a value and a window each.
//
// Cost: 2 N W F k C FLOPs, W the windows of a sample, in whole tiles, C in whole 16. Bytes from L2:
// for every 64 windows and tile of filters, (64 + (k - 1) dilation) C numbers; the filters once for
// each multiprocessor. Limit: the matrix units, which 64 windows x 128 filters x 16 channels keep
// busy for 64 clocks, and which read 6 KiB of shared memory for that, in 48; of 32 filters it is
// shared memory (16 clocks, 24). Warpgroups wait for their own products alone, so that one's copies
// and comparisons are hidden by the others' products.
//
// Measured on an H200, 3 taps of 128 channels and filters, samples of 512, the kernels again and
// again: 64 samples 19 us, 512 61 us (419 TFLOP/s), 2048 229 us (448); torch.mm of 8192 x 8192
// there 790.
//
// Tried: three warpgroups with 128 filters spill 1 KiB a thread. A number of products that depends
// on the chunk, in a loop or a branch, and ptxas has every product wait for the one before (C7520).
// Filters read by each block as they lie, and unravelled number by number: 27 us of every launch
// with 128 filters of 3 x 128 numbers, 10 to 15 us with fewer. Each chunk copied by one warp of the
// four by turns, for show_to_products, a fence of all of a warp's memory operations, to have no
// copies to wait for: 254 us where all four copying take 229, and the same without any fence. Small
// pools by threads that read shared memory number by number: 145 us where pooling over time takes
// 41.
#pragma once

#include "convolution_operands.h"
#include "convolution_plan.h"
#include "convolution_rules.h"
#include "convolution_warpgroup_pools.h"
#include "cuda/warpgroup.h"
#include "tile.h"

namespace seqkernels::cuda {

// The winners of pools that several runs share.
template <class T>
__global__ void merge_runs(ConvolutionForward<T> call, WarpgroupPlan plan, PartialWinners partial) {
    const ConvolutionShape& shape = call.shape;
    const int64_t outputs = shape.batch * shape.pooled * shape.filters;
    for (int64_t index = thread_in_grid(); index < outputs; index += threads_in_grid()) {
        const int64_t filter = index % shape.filters;
        const int64_t pool = index / shape.filters;  // of all samples
        const int64_t first_run = pool * plan.tiles_of_pool / plan.run;
        const int64_t last_run = ((pool + 1) * plan.tiles_of_pool - 1) / plan.run;
        if (first_run == last_run) continue;
        Winner<float> winner;
        for (int64_t part = 0; part <= last_run - first_run; ++part) {
            const int64_t place = (pool * plan.parts + part) * shape.filters + filter;
            winner.challenge(partial.values[place], partial.windows[place]);
        }
        store_winner(call, pool / shape.pooled, pool % shape.pooled, filter, winner);
    }
}

// The filters as the blocks' right operands, (filter tile, chunk, tap, filter, 64 channels), zeros
// for what is none: a thread gathers 8 channels of a filter and tap. Few threads a block, so that
// many multiprocessors wait for memory at the same time.
constexpr int packing_threads = 64;

template <class T>
__global__ void pack_right_operands(ConvolutionShape shape, ConvolutionWeight weight,
                                    WarpgroupPlan plan, T* packed) {
    let_next_kernel_start();
    constexpr int in_piece = piece_bytes / int{sizeof(T)};
    const T* numbers = static_cast<const T*>(weight.numbers.data);
    const auto taps = static_cast<int>(shape.kernel_size);
    const auto in_tile = static_cast<int>(plan.filter_bytes(taps) / piece_bytes);
    const int64_t pieces = plan.filter_tiles * in_tile;
    for (int64_t index = thread_in_grid(); index < pieces; index += threads_in_grid()) {
        const int64_t tile = index / in_tile;
        const auto place = static_cast<int>(index - tile * in_tile);
        const int row = place / pieces_in_row, piece = place % pieces_in_row;
        const int64_t filter = tile * plan.filters + row % plan.filters;
        const int tap = row / plan.filters % taps;
        const int chunk = row / plan.filters / taps;
        const int channel = chunk * elements_in_row<T> + piece * in_piece;
        const int64_t left = filter < shape.filters ? shape.channels - channel : 0;
        const T* from = numbers + filter * weight.stride_filter + channel * weight.stride_channel +
                        tap * weight.stride_tap;
        T found[in_piece]{};
#pragma unroll
        for (int k = 0; k < in_piece; ++k) {
            if (k < left) found[k] = from[k * weight.stride_channel];
        }
        Words<4> several;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            several.words[k] = found[2 * k].bits | uint32_t{found[2 * k + 1].bits} << 16;
        }
        char* to = reinterpret_cast<char*>(packed) + tile * plan.filter_bytes(taps);
        *reinterpret_cast<Words<4>*>(piece_at(to, row, piece)) = several;
    }
}

template <class T, int filters, bool has_small_pools>
class WarpgroupForward {
    static constexpr int columns = filters / 4;  // of a thread
    // Once lanes have shared them out; of 16 filters two lanes have the same.
    static constexpr int owned_columns = columns < 8 ? 1 : columns / 8;
    static constexpr int warps_down = warpgroup_threads / warp_threads;
    static constexpr int products_in_chunk = 4;  // of 16 channels each
    using Thread = TileThread;

 public:
    static constexpr int warpgroups = warpgroups_of_block(filters);
    static constexpr int threads = warpgroups * warpgroup_threads;

    __device__ WarpgroupForward(const ConvolutionForward<T>& call, const ConvolutionPlan& plan,
                                const InputRows<T>& rows, const PartialWinners& partial,
                                const T* packed, int64_t filter_tile)
        : call_(call),
          plan_(plan),
          own_(plan.warpgroup),
          rows_(rows),
          partial_(partial),
          packed_(reinterpret_cast<const char*>(packed) + filter_tile * own_.filter_bytes(taps())),
          first_filter_(filter_tile * filters),
          warpgroup_(agreed(static_cast<int>(threadIdx.x) / warpgroup_threads)) {
        filters_ = shared_memory();
        filters_ += -shared_address(filters_) & (shared_alignment - 1);
        char* stages = filters_ + own_.filter_bytes(taps());
        const int64_t bytes = own_.stages * own_.stage_bytes();
        stages_ = stages + warpgroup_ * bytes;
        exchange_ = stages + own_.busy_warpgroups * bytes + warpgroup_ * own_.exchange_bytes();
    }

    // The runs of a block: one for each warpgroup, or none, but for its part of the filters.
    __device__ void run(int64_t block) {
        const int64_t run = block + warpgroup_ * own_.blocks;
        const int end = static_cast<int>(smaller(own_.tiles, (run + 1) * own_.run));
        WindowTile tile(own_, run * own_.run);
        WindowTile next = tile;
        int next_chunk = 0;
        int next_stage = 0;
        const auto begin_next = [&] {
            if (next_chunk == 0) {
                for (; next.index < end; next.advance(own_)) {
                    next.measure(call_, own_);
                    if (next.count() > 0) break;
                }
            }
            if (next.index < end) {
                begin_rows(stages_ + next_stage * own_.stage_bytes(), next, next_chunk);
                if (++next_stage == own_.stages) next_stage = 0;
                if (++next_chunk == own_.chunks) {
                    next_chunk = 0;
                    next.advance(own_);
                }
            }
            commit_copies();
        };
        for (int i = 1; i < own_.stages; ++i) begin_next();
        wait_for_kernel_before();
        bring_filters();
        wait_for_copies<0>();
        show_to_products();
        __syncthreads();
        int stage = 0;
        // The compiler is to see that all threads agree on how many products there are, or it has
        // them wait for each other: it does for a number of the plan, not for one of the chunk.
        const auto step = [&](int chunk, int products) {
            wait_for_stage();
            show_to_products();
            wait_for_warpgroup();
            multiply(stages_ + stage * own_.stage_bytes(), chunk, products);
            // All threads have waited for the products of the stage before: it is free.
            begin_next();
            wait_for_products(sums_);
            if (++stage == own_.stages) stage = 0;
        };
        const SmallPools<T, filters> small_pools(call_, own_, first_filter_, exchange_);
        bool is_first = true;  // of its pool, in this run
        for (; tile.index < end; tile.advance(own_)) {
            tile.measure(call_, own_);
            if (tile.count() > 0) {
                int chunk = 0;
                for (; chunk + 1 < own_.chunks; ++chunk) step(chunk, products_in_chunk);
                step(chunk, own_.last_products);
            }
            if constexpr (has_small_pools) {
                small_pools.store(tile, sums_);
            } else {
                if (is_first) clear_winners();
                challenge(tile, is_first);
                is_first = tile.ordinal + 1 == own_.tiles_of_pool;
                if (is_first || tile.index + 1 == end) store_pool(tile, run);
            }
        }
    }

 private:
    __device__ float sum(int half, int j) const { return Thread::sum(sums_, half, j); }
    __device__ int taps() const { return static_cast<int>(call_.shape.kernel_size); }

    __device__ void wait_for_stage() const {
        switch (own_.stages) {
            case 2:
                return wait_for_copies<0>();
            case 3:
                return wait_for_copies<1>();
            case 4:
                return wait_for_copies<2>();
            default:
                return wait_for_copies<most_warpgroup_stages - 2>();
        }
    }

    // Begins to bring 64 channels of the positions that a tile covers, zeros for what is not real.
    __device__ void begin_rows(char* stage, const WindowTile& tile, int chunk) const {
        if (plan_.copy_bytes == 16) {
            copy_rows<16>(stage, tile, chunk);
        } else if (plan_.copy_bytes == 8) {
            copy_rows<8>(stage, tile, chunk);
        } else {
            copy_rows<4>(stage, tile, chunk);
        }
    }

    template <int bytes>
    __device__ void copy_rows(char* stage, const WindowTile& tile, int chunk) const {
        constexpr int in_row = row_bytes / bytes;
        constexpr int rows_at_once = warpgroup_threads / in_row;
        const int unit = Thread::index() % in_row;
        const int channel = chunk * elements_in_row<T> + unit * (bytes / int{sizeof(T)});
        const int products = chunk + 1 == own_.chunks ? own_.last_products : products_in_chunk;
        if (unit * bytes >= products * 2 * piece_bytes) return;
        const ConvolutionShape& shape = call_.shape;
        const int reach = static_cast<int>((shape.kernel_size - 1) * shape.dilation);
        const int rows = tile.count() + reach;
        const int position = tile.begin - static_cast<int>(shape.padding_left);
        // Of the rows' positions those from 0 to the sample's length are real.
        const int first_real = -position;
        const auto reals = static_cast<unsigned>(channel < plan_.channels ? tile.length : 0);
        const int64_t step = rows_at_once * rows_.stride_length;
        int row = Thread::index() / in_row;
        int64_t offset = tile.sample * rows_.stride_batch +
                         (int64_t{position} + row) * rows_.stride_length + channel;
        char* to = piece_at(stage, row, unit * bytes / piece_bytes) + unit * bytes % piece_bytes;
#pragma unroll 2
        for (; row < rows; row += rows_at_once, offset += step) {
            const bool is_there = static_cast<unsigned>(row - first_real) < reals;
            // Where nothing is read the source is still to be an address.
            copy_async_once<bytes>(to, rows_.numbers + (is_there ? offset : 0),
                                   is_there ? bytes : 0);
            if constexpr (rows_at_once % 8 == 0) {
                to += rows_at_once * row_bytes;  // the piece stays in its place
            } else {
                to = piece_at(stage, row + rows_at_once, unit * bytes / piece_bytes) +
                     unit * bytes % piece_bytes;
            }
        }
    }

    // Begins the products of a chunk, so many of 16 channels for each tap.
    __device__ void multiply(const char* stage, int chunk, int products) {
        constexpr uint32_t filter_bytes = filters * row_bytes;
        const auto tap_bytes = static_cast<uint32_t>(call_.shape.dilation * row_bytes);
        uint32_t left = operand_at(shared_address(stage));
        uint32_t right = operand_at(shared_address(filters_) +
                                    static_cast<uint32_t>(chunk * taps()) * filter_bytes);
        int adds = chunk;
        begin_products(sums_);
        for (int tap = 0; tap < taps(); ++tap) {
            constexpr int forward = 32 / 16;  // 16 channels, in an operand's units
            continue_products();
            if (products == products_in_chunk) {
#pragma unroll
                for (int i = 0; i < products_in_chunk; ++i) {
                    multiply_in_warpgroup<T>(sums_, left + i * forward, right + i * forward, adds);
                    adds = 1;
                }
            } else {
#pragma unroll 1
                for (int i = 0; i < products; ++i) {
                    multiply_in_warpgroup<T>(sums_, left + i * forward, right + i * forward, adds);
                    adds = 1;
                }
            }
            left += tap_bytes / 16;
            right += filter_bytes / 16;
        }
        commit_products();
    }

    __device__ void clear_winners() {
#pragma unroll
        for (Winner<float>& winner : winners_) winner = {};
    }

    // The sums of a tile against the winners so far.
    __device__ void challenge(const WindowTile& tile, bool is_first) {
        const int window = tile.begin + Thread::row();
        if (tile.count() < warpgroup_windows) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (window + half * 8 >= tile.end) break;
#pragma unroll
                for (int j = 0; j < columns; ++j) {
                    winners_[j].follow(sum(half, j), window + half * 8);
                }
            }
            return;
        }
        if (is_first) {
#pragma unroll
            for (int j = 0; j < columns; ++j) winners_[j] = {sum(0, j), window};
        } else {
#pragma unroll
            for (int j = 0; j < columns; ++j) winners_[j].follow_another(sum(0, j), window);
        }
#pragma unroll
        for (int j = 0; j < columns; ++j) winners_[j].follow_another(sum(1, j), window + 8);
    }

    // Lanes that differ in the bits of `mask` have winners of the same columns: each goes on with
    // those of its half, or both with the only one.
    template <int count>
    __device__ void share_winners(int mask) {
        constexpr int half = count / 2;
        const bool is_upper = (Thread::lane() & mask) != 0;
#pragma unroll
        for (int j = 0; j < (count + 1) / 2; ++j) {
            const Winner<float> given = is_upper ? winners_[j] : winners_[j + half];
            Winner<float> kept = is_upper ? winners_[j + half] : winners_[j];
            const float value = from_lane_xor(given.value, mask);
            kept.challenge(value, from_lane_xor(given.window, mask));
            winners_[j] = kept;
        }
    }

    // The winners of a pool, or of this run's part of it: across lanes, then across warps.
    __device__ void store_pool(const WindowTile& tile, int64_t run) {
        float* values = reinterpret_cast<float*>(exchange_);
        int32_t* windows = reinterpret_cast<int32_t*>(values + warps_down * filters);
        share_winners<columns>(16);
        share_winners<columns / 2>(8);
        share_winners<columns / 4>(4);
        const int first = Thread::lane() / 16 * (columns / 2) +
                          Thread::lane() / 8 % 2 * (columns / 4) +
                          Thread::lane() / 4 % 2 * (columns / 8);
        wait_for_warpgroup();  // what was exchanged before has been read
#pragma unroll
        for (int j = 0; j < owned_columns; ++j) {
            const int place = Thread::warp() * filters + Thread::column(first + j);
            values[place] = winners_[j].value;
            windows[place] = winners_[j].window;
        }
        wait_for_warpgroup();
        const int64_t filter = first_filter_ + Thread::index();
        const ConvolutionShape& shape = call_.shape;
        if (Thread::index() >= filters || filter >= shape.filters) return;
        Winner<float> winner;
#pragma unroll
        for (int i = 0; i < warps_down; ++i) {
            winner.challenge(values[i * filters + Thread::index()],
                             windows[i * filters + Thread::index()]);
        }
        const int64_t pool = int64_t{tile.sample} * own_.pools + tile.pool;  // of all samples
        const int64_t first_tile = pool * own_.tiles_of_pool;
        if (first_tile >= run * own_.run &&
            first_tile + own_.tiles_of_pool <= (run + 1) * own_.run) {
            store_winner(call_, tile.sample, tile.pool, filter, winner);
        } else {
            const int64_t part = run - first_tile / own_.run;
            const int64_t place = (pool * own_.parts + part) * shape.filters + filter;
            partial_.values[place] = winner.value;
            partial_.windows[place] = winner.window;
        }
    }

    // Begins to bring the block's filters, by all its warpgroups: as they lie.
    __device__ void bring_filters() const {
        const auto bytes = static_cast<int>(own_.filter_bytes(taps()));
#pragma unroll 4
        for (int i = static_cast<int>(threadIdx.x) * piece_bytes; i < bytes;
             i += threads * piece_bytes) {
            copy_async_once<piece_bytes>(filters_ + i, packed_ + i, piece_bytes);
        }
        commit_copies();
    }

    const ConvolutionForward<T>& call_;
    const ConvolutionPlan& plan_;
    const WarpgroupPlan& own_;
    const InputRows<T>& rows_;
    const PartialWinners& partial_;
    const char* packed_;
    int64_t first_filter_;
    int warpgroup_;
    char* filters_;
    char* stages_;    // of this warpgroup
    char* exchange_;  // of this warpgroup
    float sums_[filters / 2];
    Winner<float> winners_[columns];
};

template <class T, int filters, bool has_small_pools>
__global__ __launch_bounds__(warpgroups_of_block(filters) * warpgroup_threads,
                             1) void warpgroup_forward(ConvolutionForward<T> call,
                                                       ConvolutionPlan plan, InputRows<T> rows,
                                                       PartialWinners partial, const T* packed) {
#ifdef SEQKERNELS_LACKS_WARPGROUPS
    __trap();
#else
    const int64_t blocks = plan.warpgroup.blocks * plan.warpgroup.filter_tiles;
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        const int64_t filter_tile = block % plan.warpgroup.filter_tiles;
        WarpgroupForward<T, filters, has_small_pools> forward(call, plan, rows, partial, packed,
                                                              filter_tile);
        forward.run(block / plan.warpgroup.filter_tiles);
        __syncthreads();  // the filters are no longer read
    }
#endif
}

// Queues the kernels of a plan.
template <class T>
void run_warpgroups(const ConvolutionForward<T>& call, const ConvolutionPlan& plan,
                    const TiledScratch<T>& scratch, void* stream) {
    const ConvolutionShape& shape = call.shape;
    const WarpgroupPlan& own = plan.warpgroup;
    const InputRows<T> rows =
        input_rows(shape, call.input, plan.channels, scratch.repacked, stream);
    // Right before the forward, which overlaps with this kernel alone.
    const int64_t pieces = own.filter_tiles * own.filter_bytes(shape.kernel_size) / piece_bytes;
    launch({divide_rounding_up(pieces, packing_threads), packing_threads, 0, stream},
           pack_right_operands<T>, shape, call.weight, own, scratch.filters);
    const auto start = [&](auto kernel) {
        LaunchShape blocks{own.blocks * own.filter_tiles, own.warpgroups() * warpgroup_threads,
                           own.shared_bytes(shape.kernel_size), stream};
        blocks.overlaps = true;
        launch(blocks, kernel, call, plan, rows, scratch.partial,
               static_cast<const T*>(scratch.filters));
    };
    const auto start_for = [&](auto with_pools, auto without_pools) {
        own.pools_in_tile != 0 ? start(with_pools) : start(without_pools);
    };
    if (own.filters == 128) {
        start_for(warpgroup_forward<T, 128, true>, warpgroup_forward<T, 128, false>);
    } else if (own.filters == 64) {
        start_for(warpgroup_forward<T, 64, true>, warpgroup_forward<T, 64, false>);
    } else if (own.filters == 32) {
        start_for(warpgroup_forward<T, 32, true>, warpgroup_forward<T, 32, false>);
    } else {
        start_for(warpgroup_forward<T, 16, true>, warpgroup_forward<T, 16, false>);
    }
    if (own.parts > 1) {
        launch(one_thread_each(shape.batch * shape.pooled * shape.filters, stream), merge_runs<T>,
               call, own, scratch.partial);
    }
}

}  // namespace seqkernels::cuda
