// An LSTM or RNN of 16-bit numbers in one kernel that stays for the whole sequence: the recurrent
// weights of a block's hidden units lie in its shared memory from the first step to the last.
//
// The equations, shapes and ownership are recurrence_simple.h's. A block has `units` hidden units
// and a slice of the batch. At each step it multiplies the states of all units, (rows, H), which
// the blocks of its slice exchange through memory, by its weights in the matrix units: warp w takes
// every eighth 16 of the depth, and the partial sums meet in shared memory. There a thread finishes
// a sample's unit: all gates, the cell state, which stays in its registers, and the new state. Then
// it waits for the other blocks of the slice; other slices it never meets. A thread's projections
// of the next step are read before it waits.
//
// Scratch, owned by the caller: the states twice over, (2, rows of all slices, H in whole 16s),
// read from one and written to the other by turns; a count of arrivals for each slice.
//
// Cost of a step: 2 N G H^2 FLOPs and, for each block, rows H states from L2, in 4-byte words whose
// neighbours are read together. Expected on an H100 at N 16, H 768: 96 blocks of 8 units; 0.5 us
// for 24 KiB of states (one L2 latency and the words), 0.2 us for 24 products a warp, 0.3 us for
// sums and gates, 0.8 to 1 us for the barrier: about 2 us. Compiled and verified by emulation; not
// timed.
#pragma once

#include "recurrence_plan.h"
#include "recurrence_simple.h"

namespace seqkernels::cuda {

template <class T>
struct Exchange {
    T* states;           // (2, slices * rows, depth_steps * 16)
    uint32_t* arrivals;  // (slices,)
};

template <class T>
__global__ void begin_exchange(RecurrenceForward<T> call, RecurrencePlan plan,
                               Exchange<T> exchange) {
    const RecurrenceShape& shape = call.shape;
    const int64_t depth = depth_steps(shape.hidden) * 16;
    const int64_t half = plan.slices * plan.rows() * depth;
    for (int64_t index = thread_in_grid(); index < 2 * half; index += threads_in_grid()) {
        const int64_t unit = index % depth, sample = index / depth;
        const bool is_real = index < half && unit < shape.hidden && sample < shape.batch;
        exchange.states[index] = is_real ? call.initial_hidden[sample * shape.hidden + unit] : T{};
        if (index < plan.slices) exchange.arrivals[index] = 0;
    }
}

template <class T, int gates, int units>
class PersistentForward {
    static constexpr int columns = gates * units;
    static constexpr int column_tiles = columns / 8;
    static constexpr int stride = sums_stride(columns);
    static constexpr int step_bytes = columns * 32;  // weights of a step of depth

 public:
    static constexpr int threads = persistent_warps * warp_threads;

    __device__ PersistentForward(const RecurrenceForward<T>& call, const RecurrencePlan& plan,
                                 const Exchange<T>& exchange)
        : call_(call),
          shape_(call.shape),
          plan_(plan),
          depth_steps_(depth_steps(call.shape.hidden)),
          unit_blocks_(plan.unit_blocks(call.shape.hidden)),
          slice_(blockIdx.x / unit_blocks_),
          first_unit_(blockIdx.x % unit_blocks_ * units),
          arrivals_(exchange.arrivals + slice_),
          states_(exchange.states + slice_ * plan.rows() * depth_steps_ * 16),
          half_(plan.slices * plan.rows() * depth_steps_ * 16),
          weights_(shared_memory()),
          sums_(reinterpret_cast<float*>(shared_memory() + depth_steps_ * step_bytes)) {}

    __device__ void run() {
        load_weights();
        begin_samples();
        for (int64_t step = 0; step < shape_.steps; ++step) {
            float projected[most_row_tiles][gates];
            for_each_tile([&](int tile, const Place& place) {
                if (!place.is_real || step >= place.length) return;
                const int64_t at = position_at(place, step) * gates * shape_.hidden + place.unit;
#pragma unroll
                for (int gate = 0; gate < gates; ++gate) {
                    projected[tile][gate] = call_.projections[at + gate * shape_.hidden];
                }
            });
            if (step > 0) {
                if (threadIdx.x == 0) {
                    wait_for_arrivals(arrivals_, static_cast<uint32_t>(step * unit_blocks_));
                }
            }
            __syncthreads();
            const T* before = states_ + step % 2 * half_;
            T* after = states_ + (step + 1) % 2 * half_;
#pragma unroll
            for (int tile = 0; tile < most_row_tiles; ++tile) {
                if (tile >= plan_.row_tiles) break;
                multiply(before + tile * rows_of_matrix * depth_steps_ * 16);
                __syncthreads();
                finish(step, tile, projected[tile], after);
                __syncthreads();
            }
            if (threadIdx.x == 0) arrive(arrivals_);
        }
    }

 private:
    // A thread's sample and unit in a tile of rows.
    struct Place {
        bool is_real;
        int row;  // of the slice
        int column;
        int64_t sample;
        int64_t unit;
        int64_t length;
    };

    __device__ Place place_in(int tile) const {
        const int thread = static_cast<int>(threadIdx.x);
        Place place{};
        place.row = tile * rows_of_matrix + thread / units;
        place.column = thread % units;
        place.sample = slice_ * plan_.rows() + place.row;
        place.unit = first_unit_ + place.column;
        place.is_real = thread < rows_of_matrix * units && place.sample < shape_.batch &&
                        place.unit < shape_.hidden;
        if (place.is_real) place.length = sequence_length(shape_, call_.lengths, place.sample);
        return place;
    }

    template <class Function>
    __device__ void for_each_tile(Function&& function) {
#pragma unroll
        for (int tile = 0; tile < most_row_tiles; ++tile) {
            if (tile < plan_.row_tiles) function(tile, place_in(tile));
        }
    }

    // The row of an array (T, N, ...) that a sample's step is at.
    __device__ int64_t position_at(const Place& place, int64_t step) const {
        return position_of(shape_, place.length, step) * shape_.batch + place.sample;
    }

    // Column c of a step of depth: two pieces of 16 bytes, exchanged in every second four columns,
    // so that the same piece of 8 columns falls into different banks.
    __device__ char* weights_at(int64_t step, int column, int piece) const {
        return weights_ + step * step_bytes + column * 32 + ((piece ^ (column >> 2 & 1)) * 16);
    }

    __device__ void load_weights() {
        const int64_t rows = gates * shape_.hidden;
        const int64_t count = depth_steps_ * 16 * columns;
        for (int64_t i = threadIdx.x; i < count; i += threads) {
            const int column = static_cast<int>(i % columns);
            const int64_t k = i / columns;
            const int64_t unit = first_unit_ + column % units;
            T number{};
            if (k < shape_.hidden && unit < shape_.hidden) {
                number = call_.weight_transposed[k * rows + column / units * shape_.hidden + unit];
            }
            T* piece =
                reinterpret_cast<T*>(weights_at(k / 16, column, static_cast<int>(k / 8 % 2)));
            piece[k % 8] = number;
        }
    }

    __device__ void begin_samples() {
#pragma unroll
        for (int gate = 0; gate < gates; ++gate) biases_[gate] = 0;
        for_each_tile([&](int tile, const Place& place) {
            cells_[tile] = 0;
            if (!place.is_real) return;
            const int64_t index = place.sample * shape_.hidden + place.unit;
            if (gates == 4) cells_[tile] = widened(call_.initial_cell[index]);
            if (place.length == 0) {
                call_.final_hidden[index] = call_.initial_hidden[index];
                if (gates == 4) call_.final_cell[index] = call_.initial_cell[index];
            }
#pragma unroll
            for (int gate = 0; gate < gates; ++gate) {
                const int64_t row = gate * shape_.hidden + place.unit;
                float bias = call_.bias_ih == nullptr ? 0 : widened(call_.bias_ih[row]);
                bias += call_.bias_hh == nullptr ? 0 : widened(call_.bias_hh[row]);
                biases_[gate] = bias;  // the unit is the same in every tile
            }
        });
    }

    // This warp's part of a tile's product, to its place in shared memory.
    __device__ void multiply(const T* rows) {
        const int lane = static_cast<int>(threadIdx.x) % warp_threads;
        const int warp = static_cast<int>(threadIdx.x) / warp_threads;
        const int column_in_pair = lane % 8 + lane / 16 * 8, piece = lane / 8 % 2;
        float sums[2][column_tiles][2] = {};
        const int64_t row_words = depth_steps_ * 8;
        const uint32_t* words =
            reinterpret_cast<const uint32_t*>(rows) + lane / 4 * row_words + lane % 4;
#pragma unroll 4
        for (int64_t step = warp; step < depth_steps_; step += persistent_warps) {
            const uint32_t* from = words + step * 8;
            const uint32_t a[4] = {load_from_others(from), load_from_others(from + 8 * row_words),
                                   load_from_others(from + 4),
                                   load_from_others(from + 8 * row_words + 4)};
#pragma unroll
            for (int pair = 0; pair < column_tiles / 2; ++pair) {
                uint32_t b[4];
                load_matrices(b, weights_at(step, pair * 16 + column_in_pair, piece));
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int j = 2 * pair + half;
                    multiply_add<T>(sums[0][j][0], sums[0][j][1], sums[1][j][0], sums[1][j][1], a,
                                    b[2 * half], b[2 * half + 1]);
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

    __device__ void finish(int64_t step, int tile, const float (&projected)[gates], T* after) {
        const Place place = place_in(tile);
        if (!place.is_real) return;
        const int64_t index = place.sample * shape_.hidden + place.unit;
        if (step >= place.length) {
            call_.output[step * shape_.batch * shape_.hidden + index] = T{};
            return;
        }
        float gate_sums[gates];
#pragma unroll
        for (int gate = 0; gate < gates; ++gate) {
            float sum = 0;
            const float* partial =
                sums_ + place.row % rows_of_matrix * stride + gate * units + place.column;
            for (int warp = 0; warp < persistent_warps; ++warp) {
                sum += partial[warp * rows_of_matrix * stride];
            }
            gate_sums[gate] = sum + projected[gate] + biases_[gate];
        }
        const int64_t at = position_at(place, step);
        float state;
        if constexpr (gates == 4) {
            const float i = sigmoid(gate_sums[0]), f = sigmoid(gate_sums[1]);
            const float g = std::tanh(gate_sums[2]), o = sigmoid(gate_sums[3]);
            const float c = f * cells_[tile] + i * g;
            cells_[tile] = c;
            state = o * std::tanh(c);
            if (call_.gates != nullptr) {
                float* kept = call_.gates + at * 4 * shape_.hidden + place.unit;
                const float activated[4] = {i, f, g, o};
#pragma unroll
                for (int gate = 0; gate < 4; ++gate) kept[gate * shape_.hidden] = activated[gate];
                call_.cells[at * shape_.hidden + place.unit] = c;
            }
            if (step == place.length - 1) call_.final_cell[index] = narrowed<T>(c);
        } else {
            const float x = gate_sums[0];
            state = shape_.cell == RecurrentCell::rnn_tanh ? std::tanh(x) : x <= 0 ? 0 : x;
        }
        const T rounded = narrowed<T>(state);
        after[place.row * depth_steps_ * 16 + place.unit] = rounded;
        call_.output[at * shape_.hidden + place.unit] = rounded;
        if (step == place.length - 1) call_.final_hidden[index] = rounded;
    }

    const RecurrenceForward<T>& call_;
    const RecurrenceShape& shape_;
    const RecurrencePlan& plan_;
    int64_t depth_steps_;
    int64_t unit_blocks_;
    int64_t slice_;
    int64_t first_unit_;
    uint32_t* arrivals_;
    T* states_;
    int64_t half_;
    char* weights_;
    float* sums_;
    float cells_[most_row_tiles];
    float biases_[gates];
};

template <class T, int gates, int units>
__global__ __launch_bounds__(persistent_warps* warp_threads) void persistent_forward(
    RecurrenceForward<T> call, RecurrencePlan plan, Exchange<T> exchange) {
    PersistentForward<T, gates, units>(call, plan, exchange).run();
}

}  // namespace seqkernels::cuda
