// The product of a recurrence at every step, and what passes between the blocks that share it.
//
// A block multiplies rows of samples (rows, depth), which the blocks of a slice of the batch
// exchange through memory, by its own columns of weights (depth, columns), 16-bit numbers that lie
// in its shared memory from the first step to the last. Warp w takes every eighth 16 of the depth
// in the matrix units; the partial sums meet in shared memory.
#pragma once

#include "grid.h"
#include "recurrence_plan.h"
#include "recurrence_rules.h"

namespace seqkernels::cuda {

// What a slice's blocks exchange, by turns: read from one half, written to the other.
template <class T>
struct Exchange {
    T* rows;             // (2, slices * rows, depth in whole 16s)
    uint32_t* arrivals;  // (slices,)
};

template <class T, int columns>
class RecurrentProduct {
    static constexpr int column_tiles = columns / 8;
    static constexpr int stride = sums_stride(columns);
    static constexpr int step_bytes = columns * 32;  // weights of a step of depth

 public:
    static constexpr int threads = persistent_warps * warp_threads;

    __device__ RecurrentProduct(const RecurrencePlan& plan, const Exchange<T>& exchange)
        : plan_(plan),
          steps_(depth_steps(plan.depth)),
          slice_(blockIdx.x / plan.unit_blocks),
          arrivals_(exchange.arrivals + slice_),
          rows_(exchange.rows + slice_ * plan.rows() * steps_ * 16),
          half_(plan.slices * plan.rows() * steps_ * 16),
          weights_(shared_memory()),
          sums_(reinterpret_cast<float*>(shared_memory() + steps_ * step_bytes)) {}

    __device__ int64_t slice() const { return slice_; }

    // Fills shared memory with weight(k, column), zeros beyond the depth. A barrier must follow.
    template <class Weight>
    __device__ void load_weights(Weight&& weight) {
        const int64_t count = steps_ * 16 * columns;
        for (int64_t i = threadIdx.x; i < count; i += threads) {
            const int column = static_cast<int>(i % columns);
            const int64_t k = i / columns;
            // A lane reads four numbers of 16 that lie side by side, and multiplies the first two
            // as numbers 2 l and 2 l + 1, the others as those 8 further on.
            const int lane = static_cast<int>(k % 16) / 4, number = static_cast<int>(k % 4);
            T* piece = reinterpret_cast<T*>(weights_at(k / 16, column, number / 2));
            piece[2 * lane + number % 2] = k < plan_.depth ? weight(k, column) : T{};
        }
    }

    // Waits until all blocks of the slice have arrived that often. All threads take part.
    __device__ void wait(int64_t arrivals) {
        if (threadIdx.x == 0 && arrivals > 0) {
            wait_for_arrivals(arrivals_, static_cast<uint32_t>(arrivals * plan_.unit_blocks));
        }
        __syncthreads();
    }

    // Tells the others that this block's part of the next rows is there; after a barrier.
    __device__ void arrive_at_next() {
        if (threadIdx.x == 0) arrive(arrivals_);
    }

    // Where a row of the slice for a turn's product is written.
    __device__ T* row_for(int64_t turn, int row) const {
        return rows_ + turn % 2 * half_ + row * steps_ * 16;
    }

    // The sums of a tile of rows of a turn, for `total`. All threads take part; barriers are
    // inside.
    __device__ void multiply(int64_t turn, int tile) {
        multiply_part(row_for(turn, tile * rows_of_matrix));
        __syncthreads();
    }

    __device__ float total(int row_in_tile, int column) const {
        const float* partial = sums_ + row_in_tile * stride + column;
        float sum = 0;
        for (int warp = 0; warp < persistent_warps; ++warp) {
            sum += partial[warp * rows_of_matrix * stride];
        }
        return sum;
    }

 private:
    // Column c of a step of depth: two pieces of 16 bytes, exchanged in every second four columns,
    // so that the same piece of 8 columns falls into different banks.
    __device__ char* weights_at(int64_t step, int column, int piece) const {
        return weights_ + step * step_bytes + column * 32 + ((piece ^ (column >> 2 & 1)) * 16);
    }

    // This warp's part of a product, to its place in shared memory.
    __device__ void multiply_part(const T* rows) {
        const int lane = static_cast<int>(threadIdx.x) % warp_threads;
        const int warp = static_cast<int>(threadIdx.x) / warp_threads;
        const int column_in_pair = lane % 8 + lane / 16 * 8, piece = lane / 8 % 2;
        float sums[2][column_tiles][2] = {};
        const int64_t row_words = steps_ * 8;
        const uint32_t* words =
            reinterpret_cast<const uint32_t*>(rows) + lane / 4 * row_words + lane % 4 * 2;
        // So many steps' rows are on their way from L2 at once.
        constexpr int at_once = 4;
        for (int64_t first = warp; first < steps_; first += at_once * persistent_warps) {
            uint32_t a[at_once][4];
#pragma unroll
            for (int i = 0; i < at_once; ++i) {
                const int64_t step = first + i * persistent_warps;
                if (step >= steps_) break;
                load_from_others(words + step * 8, a[i][0], a[i][2]);
                load_from_others(words + step * 8 + 8 * row_words, a[i][1], a[i][3]);
            }
#pragma unroll
            for (int i = 0; i < at_once; ++i) {
                const int64_t step = first + i * persistent_warps;
                if (step >= steps_) break;
#pragma unroll
                for (int pair = 0; pair < column_tiles / 2; ++pair) {
                    uint32_t b[4];
                    load_matrices(b, weights_at(step, pair * 16 + column_in_pair, piece));
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int j = 2 * pair + half;
                        multiply_add<T>(sums[0][j][0], sums[0][j][1], sums[1][j][0], sums[1][j][1],
                                        a[i], b[2 * half], b[2 * half + 1]);
                    }
                }
            }
        }
        float* target = sums_ + (warp * rows_of_matrix + lane / 4) * stride + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int j = 0; j < column_tiles; ++j) {
                target[half * 8 * stride + j * 8] = sums[half][j][0];
                target[half * 8 * stride + j * 8 + 1] = sums[half][j][1];
            }
        }
    }

    const RecurrencePlan& plan_;
    int64_t steps_;
    int64_t slice_;
    uint32_t* arrivals_;
    T* rows_;
    int64_t half_;
    char* weights_;
    float* sums_;
};

// A thread's sample and unit in a tile of rows.
struct RecurrentPlace {
    bool is_real;
    int row;  // of the slice
    int column;
    int64_t sample;
    int64_t unit;
    int64_t length;
};

template <int units>
__device__ inline RecurrentPlace place_in_tile(const RecurrenceShape& shape,
                                               const RecurrencePlan& plan, const int64_t* lengths,
                                               int tile) {
    const int thread = static_cast<int>(threadIdx.x);
    RecurrentPlace place{};
    place.row = tile * rows_of_matrix + thread / units;
    place.column = thread % units;
    place.sample = blockIdx.x / plan.unit_blocks * plan.rows() + place.row;
    place.unit = blockIdx.x % plan.unit_blocks * units + place.column;
    place.is_real =
        thread < rows_of_matrix * units && place.sample < shape.batch && place.unit < shape.hidden;
    if (place.is_real) place.length = sequence_length(shape, lengths, place.sample);
    return place;
}

// Calls function(tile, place) for the tiles of a block's rows.
template <int units, class Function>
__device__ inline void for_each_tile(const RecurrenceShape& shape, const RecurrencePlan& plan,
                                     const int64_t* lengths, Function&& function) {
#pragma unroll
    for (int tile = 0; tile < most_row_tiles; ++tile) {
        if (tile < plan.row_tiles) {
            function(tile, place_in_tile<units>(shape, plan, lengths, tile));
        }
    }
}

}  // namespace seqkernels::cuda
