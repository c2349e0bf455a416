// Convolution, bias, activation and max-pooling through tiles in shared memory.
//
// The numbers of a window of an (N, L, C) sequence lie side by side, tap after tap, so the
// convolution is a product of windows, read where they lie, and filters. A block takes a stretch of
// a sample's windows and a tile of filters; its maxima stay in registers from tile to tile, and
// only they and their windows are written.
//
// Shapes, strides and ownership: ConvolutionForward in csrc/core/convolution.h. Scratch, owned by
// the caller: TiledScratch: the filters, (chunks, filters in whole tiles, 128 bytes); the input as
// (N, L, C) where it does not lie so, in rows aligned to 4 bytes; where a pool is split, its parts'
// winners, (N, P, splits, F), a value and a window each.
//
// A step of the pipeline is a chunk (128 bytes) of each of a tile's windows and filters, which come
// in by asynchronous copies, `stages - 1` steps ahead of the product.
//
// Cost: 2 N W F k C FLOPs, W the windows of a sample, all rounded up to whole tiles and k C to
// whole chunks. Bytes from L2, for a tile of 128: 32 KiB for every 2^20 multiply-adds of 16-bit
// numbers, for half as many of float32; and the input twice over where it is repacked. Limit: the
// matrix units, as far as mma.sync drives them; float32 the multiply-add rate. Measured on an H200
// (N 512, L 512, C 128, F 128, k 3, pooled over time): bfloat16 204 us (126 TFLOP/s), TF32 375,
// float32 789 (33 TFLOP/s); N 64: 36, 59 and 108 us.
#pragma once

#include "convolution_operands.h"
#include "convolution_plan.h"
#include "convolution_rules.h"
#include "tile.h"

namespace seqkernels::cuda {

constexpr int stages = 3;

template <class T>
__global__ void merge_winners(ConvolutionForward<T> call, int64_t splits, PartialWinners partial) {
    const ConvolutionShape& shape = call.shape;
    const int64_t outputs = shape.batch * shape.pooled * shape.filters;
    for (int64_t index = thread_in_grid(); index < outputs; index += threads_in_grid()) {
        const int64_t filter = index % shape.filters;
        const int64_t pool = index / shape.filters;  // of all samples
        Winner<float> winner;
        for (int64_t split = 0; split < splits; ++split) {
            const int64_t part = (pool * splits + split) * shape.filters + filter;
            winner.challenge(partial.values[part], partial.windows[part]);
        }
        store_winner(call, pool / shape.pooled, pool % shape.pooled, filter, winner);
    }
}

// What a block computes: windows of one sample, for a tile of filters.
struct Stretch {
    int64_t sample;
    int64_t filter_tile;
    Range pools;
    Range windows;
    int64_t length;  // of the sample
    int64_t split;
};

__device__ inline Stretch stretch_of(const ConvolutionShape& shape, const ConvolutionPlan& plan,
                                     const int64_t* lengths, int64_t item) {
    Stretch stretch{};
    stretch.filter_tile = item % plan.filter_tiles;
    const int64_t row = item / plan.filter_tiles;
    const int64_t part = row % plan.stretches(shape);
    stretch.sample = row / plan.stretches(shape);
    stretch.length = sample_length(shape, lengths, stretch.sample);
    const int64_t windows = shape.windows(stretch.length);
    const int64_t pools = shape.pools(windows);
    if (plan.pools_in_tile == 0) {
        const int64_t pool = part / plan.splits;
        stretch.split = part % plan.splits;
        stretch.pools = {pool, pool + 1};
        if (pool < pools) {
            const Range all = windows_of_pool(shape, pool, windows);
            const Range own = part_of(all.count(), plan.tile, stretch.split, plan.splits);
            stretch.windows = {all.begin + own.begin, all.begin + own.end};
        }
    } else {
        stretch.pools = {part * plan.pools_in_tile,
                         smaller(shape.pooled, (part + 1) * plan.pools_in_tile)};
        const int64_t last = smaller(stretch.pools.end, pools) - 1;
        if (last >= stretch.pools.begin) {
            stretch.windows = {windows_of_pool(shape, stretch.pools.begin, windows).begin,
                               windows_of_pool(shape, last, windows).end};
        }
    }
    return stretch;
}

template <class T, class Product, int tile>
class TiledForward {
    using Sums = float[Product::rows][Product::columns];
    static constexpr int tile_bytes = tile * row_bytes;
    static constexpr int stage_bytes = 2 * tile_bytes;
    // Rows of the convolution where it is pooled in shared memory; odd, to spread over the banks.
    static constexpr int kept_stride = tile + 1;

 public:
    static constexpr int64_t shared_bytes = stages * int64_t{stage_bytes};
    static_assert(shared_bytes <= 99 * 1024, "what a block of any GPU from sm_80 on may have");
    static_assert(tile * kept_stride * int{sizeof(float)} <= shared_bytes);

    __device__ TiledForward(const ConvolutionForward<T>& call, const ConvolutionPlan& plan,
                            const InputRows<T>& rows, const T* filters,
                            const PartialWinners& partial)
        : call_(call),
          shape_(call.shape),
          plan_(plan),
          rows_(rows),
          filters_(filters),
          partial_(partial) {}

    __device__ void run(const Stretch& stretch) {
        const int64_t tiles = divide_rounding_up(stretch.windows.count(), tile);
        const int64_t steps = tiles * plan_.chunks;
        const WindowReader<T, Product, tile> reader(shape_, plan_, rows_, stretch.sample,
                                                    stretch.length);
        int64_t next_window = stretch.windows.begin;
        Chunk next;
        const auto begin_next = [&](char* stage) {
            reader.begin(stage, next_window, stretch.windows.end, next);
            begin_filters(stage + tile_bytes, stretch.filter_tile, next.index);
            next.advance(shape_.kernel_size, plan_, elements_in_row<T>);
            if (next.index == plan_.chunks) {
                next = {};
                next_window += tile;
            }
        };
        for (int i = 0; i < stages - 1; ++i) {
            if (i < steps) begin_next(stage_at(i));
            commit_copies();
        }
        clear(sums_);
        int64_t window = stretch.windows.begin;
        int64_t chunk = 0;
        for (int64_t step = 0; step < steps; ++step) {
            wait_for_copies<stages - 2>();
            __syncthreads();
            if (step + stages - 1 < steps) begin_next(stage_at(step + stages - 1));
            commit_copies();
            const char* here = stage_at(step);
            Product::multiply(here, here + tile_bytes, sums_);
            if (++chunk == plan_.chunks) {
                if (plan_.pools_in_tile == 0) challenge(window, stretch.windows.end);
                chunk = 0;
                window += tile;
                if (plan_.pools_in_tile == 0) clear(sums_);
            }
        }
        __syncthreads();  // the stages are free
        if (plan_.pools_in_tile == 0) {
            store_pool(stretch);
        } else {
            store_pools(stretch);
        }
        __syncthreads();  // and are so again for the next stretch
    }

 private:
    __device__ static char* stage_at(int64_t step) {
        return shared_memory() + static_cast<int>(step % stages) * stage_bytes;
    }

    __device__ static void clear(Sums& sums) {
#pragma unroll
        for (auto& row : sums) {
#pragma unroll
            for (float& sum : row) sum = 0;
        }
    }

    __device__ void begin_filters(char* target, int64_t filter_tile, int64_t chunk) const {
        const int64_t row = chunk * plan_.filters_padded() + filter_tile * tile;
        const char* from = reinterpret_cast<const char*>(filters_) + row * row_bytes;
#pragma unroll
        for (int i = 0; i < tile * pieces_in_row / Product::threads; ++i) {
            const int vector = static_cast<int>(threadIdx.x) + i * Product::threads;
            copy_async<piece_bytes>(
                piece_at(target, vector / pieces_in_row, vector % pieces_in_row),
                from + vector * piece_bytes, piece_bytes);
        }
    }

    // The sums of a tile of windows against the winners so far.
    __device__ void challenge(int64_t first, int64_t end) {
#pragma unroll
        for (int j = 0; j < Product::columns; ++j) {
#pragma unroll
            for (int i = 0; i < Product::rows; ++i) {
                const int64_t window = first + Product::row(i);
                if (window < end) winners_[j].follow(sums_[i][j], static_cast<int32_t>(window));
            }
        }
    }

    // The block's winners: across lanes, then across the warps below each other.
    __device__ void store_pool(const Stretch& stretch) {
        float* values = reinterpret_cast<float*>(shared_memory());
        int32_t* windows = reinterpret_cast<int32_t*>(values + Product::down * tile);
#pragma unroll
        for (int j = 0; j < Product::columns; ++j) {
            Winner<float>& winner = winners_[j];
#pragma unroll
            for (int mask = Product::lanes_across; mask < warp_threads; mask *= 2) {
                const float value = from_lane_xor(winner.value, mask);
                winner.challenge(value, from_lane_xor(winner.window, mask));
            }
            if (Product::W::lane() < Product::lanes_across) {
                const int place = Product::W::row() * tile + Product::column(j);
                values[place] = winner.value;
                windows[place] = winner.window;
            }
            winner = {};
        }
        __syncthreads();
        const int column = static_cast<int>(threadIdx.x);
        const int64_t filter = stretch.filter_tile * tile + column;
        if (column >= tile || filter >= shape_.filters) return;
        Winner<float> winner;
        for (int i = 0; i < Product::down; ++i) {
            winner.challenge(values[i * tile + column], windows[i * tile + column]);
        }
        const int64_t pool = stretch.pools.begin;
        if (plan_.splits == 1) {
            store_winner(call_, stretch.sample, pool, filter, winner);
        } else {
            const int64_t part =
                ((stretch.sample * shape_.pooled + pool) * plan_.splits + stretch.split) *
                    shape_.filters +
                filter;
            partial_.values[part] = winner.value;
            partial_.windows[part] = winner.window;
        }
    }

    // The pools of a tile, through the convolution in shared memory.
    __device__ void store_pools(const Stretch& stretch) {
        float* kept = reinterpret_cast<float*>(shared_memory());
#pragma unroll
        for (int i = 0; i < Product::rows; ++i) {
#pragma unroll
            for (int j = 0; j < Product::columns; ++j) {
                kept[Product::row(i) * kept_stride + Product::column(j)] = sums_[i][j];
            }
        }
        __syncthreads();
        // Neighbouring threads write along the direction in which the output lies.
        const int pools = static_cast<int>(stretch.pools.count());
        const bool along_pools = call_.output_stride_filter != 1;
        for (int entry = static_cast<int>(threadIdx.x); entry < pools * tile;
             entry += Product::threads) {
            const int column = along_pools ? entry / pools : entry % tile;
            const int64_t pool = stretch.pools.begin + (along_pools ? entry % pools : entry / tile);
            const int64_t filter = stretch.filter_tile * tile + column;
            if (filter >= shape_.filters) continue;
            Winner<float> winner;
            const int64_t first = pool * shape_.pool_stride;
            if (first + shape_.pool_size <= stretch.windows.end) {
                for (int64_t window = first; window < first + shape_.pool_size; ++window) {
                    const auto row = static_cast<int>(window - stretch.windows.begin);
                    winner.follow(kept[row * kept_stride + column], static_cast<int32_t>(window));
                }
            }
            store_winner(call_, stretch.sample, pool, filter, winner);
        }
    }

    const ConvolutionForward<T>& call_;
    const ConvolutionShape& shape_;
    const ConvolutionPlan& plan_;
    const InputRows<T>& rows_;
    const T* filters_;
    const PartialWinners& partial_;
    Sums sums_;
    Winner<float> winners_[Product::columns];
};

template <class T, class Product, int tile>
__global__ __launch_bounds__(Product::threads, blocks_of_multiprocessor(tile)) void tiled_forward(
    ConvolutionForward<T> call, ConvolutionPlan plan, InputRows<T> rows, const T* filters,
    PartialWinners partial) {
    TiledForward<T, Product, tile> forward(call, plan, rows, filters, partial);
    for (int64_t item = blockIdx.x; item < plan.items(call.shape); item += gridDim.x) {
        forward.run(stretch_of(call.shape, plan, call.lengths, item));
    }
}

// Queues the kernels of a plan.
template <class T, template <int, int> class Product>
void run_tiled(const ConvolutionForward<T>& call, const ConvolutionPlan& plan,
               const TiledScratch<T>& scratch, void* stream) {
    const ConvolutionShape& shape = call.shape;
    const int64_t filters = plan.chunks * plan.filters_padded() * elements_in_row<T>;
    launch(one_thread_each(filters, stream), pack_filters<T>, shape, call.weight, plan,
           scratch.filters);
    const InputRows<T> rows =
        input_rows(shape, call.input, plan.channels, scratch.repacked, stream);
    const auto start = [&](auto kernel, int64_t shared_bytes, int threads) {
        launch({plan.items(shape), threads, shared_bytes, stream}, kernel, call, plan, rows,
               scratch.filters, scratch.partial);
    };
    if (plan.tile == 128) {
        using P = Product<128, 128>;
        start(tiled_forward<T, P, 128>, TiledForward<T, P, 128>::shared_bytes, P::threads);
    } else {
        using P = Product<64, 64>;
        start(tiled_forward<T, P, 64>, TiledForward<T, P, 64>::shared_bytes, P::threads);
    }
    if (plan.splits > 1) {
        launch(one_thread_each(shape.batch * shape.pooled * shape.filters, stream),
               merge_winners<T>, call, plan.splits, scratch.partial);
    }
}

template <class T>
struct InMatrixUnits {
    template <int rows, int columns>
    using Product = MatrixUnitProduct<T, rows, columns>;
};

}  // namespace seqkernels::cuda
