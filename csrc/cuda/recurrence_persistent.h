// An LSTM or RNN of 16-bit numbers in one kernel that stays for the whole sequence.
//
// The equations, shapes and ownership are recurrence_simple.h's, the product of a step is
// recurrent_product.h's: a block has the recurrent weights of `units` hidden units, all gates of
// them, for a slice of the batch. A thread finishes a sample's unit: gates, the cell state, which
// stays in its registers, and the new state. Then it waits for the other blocks of the slice; other
// slices it never meets. A thread's projections of a step are read before it waits.
//
// Scratch, owned by the caller: Exchange, of the states.
//
// Cost of a step: 2 N G H^2 FLOPs and, for each block, rows H states from L2, in words of 8 bytes,
// 32 side by side. Expected on an H100 at N 16, H 768: 96 blocks of 8 units; 0.5 us
// for 24 KiB of states (one L2 latency and the words), 0.2 us for 24 products a warp, 0.3 us for
// sums and gates, 0.8 to 1 us for the barrier: about 2 us. Compiled and verified by emulation; not
// timed.
#pragma once

#include "recurrence_simple.h"
#include "recurrent_product.h"

namespace seqkernels::cuda {

// The states before the first step, zeros around them, and no arrivals.
template <class T>
__global__ void begin_exchange(RecurrenceForward<T> call, RecurrencePlan plan,
                               Exchange<T> exchange) {
    const RecurrenceShape& shape = call.shape;
    const int64_t depth = depth_steps(plan.depth) * 16;
    const int64_t half = plan.slices * plan.rows() * depth;
    for (int64_t index = thread_in_grid(); index < 2 * half; index += threads_in_grid()) {
        const int64_t unit = index % depth, sample = index / depth;
        const bool is_real = index < half && unit < shape.hidden && sample < shape.batch;
        exchange.rows[index] = is_real ? call.initial_hidden[sample * shape.hidden + unit] : T{};
        if (index < plan.slices) exchange.arrivals[index] = 0;
    }
}

template <class T, int gates, int units>
class PersistentForward {
    using Place = RecurrentPlace;

 public:
    using Product = RecurrentProduct<T, gates * units>;

    __device__ PersistentForward(const RecurrenceForward<T>& call, const RecurrencePlan& plan,
                                 const Exchange<T>& exchange)
        : call_(call), shape_(call.shape), plan_(plan), product_(plan, exchange) {}

    __device__ void run() {
        const int64_t first_unit = blockIdx.x % plan_.unit_blocks * units;
        product_.load_weights([&](int64_t k, int column) {
            const int64_t unit = first_unit + column % units;
            const int64_t row = column / units * shape_.hidden + unit;
            return unit < shape_.hidden ? call_.weight_transposed[k * gates * shape_.hidden + row]
                                        : T{};
        });
        begin_samples();
        for (int64_t step = 0; step < shape_.steps; ++step) {
            float projected[most_row_tiles][gates];
            for_each([&](int tile, const Place& place) {
                if (!place.is_real || step >= place.length) return;
                const int64_t at = position_at(place, step) * gates * shape_.hidden + place.unit;
#pragma unroll
                for (int gate = 0; gate < gates; ++gate) {
                    projected[tile][gate] = call_.projections[at + gate * shape_.hidden];
                }
            });
            product_.wait(step);
            for_each([&](int tile, const Place& place) {
                product_.multiply(step, tile);
                if (place.is_real) finish(step, tile, place, projected[tile]);
                __syncthreads();
            });
            product_.arrive_at_next();
        }
    }

 private:
    template <class Function>
    __device__ void for_each(Function&& function) {
        for_each_tile<units>(shape_, plan_, call_.lengths, function);
    }

    // The row of an array (T, N, ...) that a sample's step is at.
    __device__ int64_t position_at(const Place& place, int64_t step) const {
        return position_of(shape_, place.length, step) * shape_.batch + place.sample;
    }

    __device__ void begin_samples() {
#pragma unroll
        for (int gate = 0; gate < gates; ++gate) biases_[gate] = 0;
        for_each([&](int tile, const Place& place) {
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

    __device__ void finish(int64_t step, int tile, const Place& place,
                           const float (&projected)[gates]) {
        const int64_t index = place.sample * shape_.hidden + place.unit;
        if (step >= place.length) {
            call_.output[step * shape_.batch * shape_.hidden + index] = T{};
            return;
        }
        float gate_sums[gates];
#pragma unroll
        for (int gate = 0; gate < gates; ++gate) {
            const float sum =
                product_.total(place.row % rows_of_matrix, gate * units + place.column);
            gate_sums[gate] = sum + projected[gate] + biases_[gate];
        }
        const int64_t at = position_at(place, step);
        float state;
        if constexpr (gates == 4) {
            const auto activated = LstmGates<float>::of_sums(gate_sums);
            float& cell = cells_[tile];
            state = activated.step(cell);
            if (call_.gates != nullptr) {
                float* kept = call_.gates + at * 4 * shape_.hidden + place.unit;
                kept[0] = activated.i;
                kept[shape_.hidden] = activated.f;
                kept[2 * shape_.hidden] = activated.g;
                kept[3 * shape_.hidden] = activated.o;
                call_.cells[at * shape_.hidden + place.unit] = cell;
            }
            if (step == place.length - 1) call_.final_cell[index] = narrowed<T>(cell);
        } else {
            state = rnn_state(shape_.cell, gate_sums[0]);
        }
        const T rounded = narrowed<T>(state);
        product_.row_for(step + 1, place.row)[place.unit] = rounded;
        call_.output[at * shape_.hidden + place.unit] = rounded;
        if (step == place.length - 1) call_.final_hidden[index] = rounded;
    }

    const RecurrenceForward<T>& call_;
    const RecurrenceShape& shape_;
    const RecurrencePlan& plan_;
    Product product_;
    float cells_[most_row_tiles];
    float biases_[gates];
};

template <class T, int gates, int units>
__global__ __launch_bounds__(persistent_warps* warp_threads) void persistent_forward(
    RecurrenceForward<T> call, RecurrencePlan plan, Exchange<T> exchange) {
    PersistentForward<T, gates, units>(call, plan, exchange).run();
}

}  // namespace seqkernels::cuda
