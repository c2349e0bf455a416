// The backward of recurrence_persistent.h, in one kernel that stays for the whole sequence.
//
// The equations, shapes and ownership are recurrence_simple.h's, the product of a step is
// recurrent_product.h's: a block has `units` hidden units, and of weight_hh (G H, H) their columns;
// what the blocks of a slice exchange are the gradients of all gates, (rows, G H). A thread
// finishes a sample's unit; the running gradient of its cell state stays in its registers.
//
// Scratch, owned by the caller: Exchange, of the gates' gradients.
//
// Cost of a step: 2 N G H^2 FLOPs and, for each block, rows G H numbers from L2: at N 16, H 768 98
// KB for each of 48 blocks, about 1 us at 5 TB/s; expected with sums and barrier 3 us. Blocks of 8
// units would read that twice over. Compiled and verified by emulation; not timed.
#pragma once

#include "recurrence_simple.h"
#include "recurrent_product.h"

namespace seqkernels::cuda {

// Nothing yet, and no arrivals.
template <class T>
__global__ void clear_exchange(RecurrencePlan plan, Exchange<T> exchange) {
    const int64_t count = 2 * plan.slices * plan.rows() * depth_steps(plan.depth) * 16;
    for (int64_t index = thread_in_grid(); index < count; index += threads_in_grid()) {
        exchange.rows[index] = T{};
        if (index < plan.slices) exchange.arrivals[index] = 0;
    }
}

template <class T, int gates>
class PersistentBackward {
    using Place = RecurrentPlace;
    static constexpr int units = backward_units;

 public:
    using Product = RecurrentProduct<T, units>;

    __device__ PersistentBackward(const RecurrenceBackward<T>& call, const RecurrencePlan& plan,
                                  const Exchange<T>& exchange)
        : call_(call), shape_(call.shape), plan_(plan), product_(plan, exchange) {}

    __device__ void run() {
        const int64_t first_unit = blockIdx.x % plan_.unit_blocks * units;
        product_.load_weights([&](int64_t k, int column) {
            const int64_t unit = first_unit + column;
            return unit < shape_.hidden ? call_.weight[k * shape_.hidden + unit] : T{};
        });
        for_each([&](int tile, const Place&) { grad_cells_[tile] = 0; });
        // Turn t is of step T - 1 - t; the last one, of no step, is the initial states'.
        for (int64_t turn = 0; turn <= shape_.steps; ++turn) {
            const int64_t step = shape_.steps - 1 - turn;
            Kept kept[most_row_tiles];
            for_each([&](int tile, const Place& place) {
                if (place.is_real && step >= 0 && step < place.length) {
                    kept[tile] = kept_of(place, step);
                }
            });
            product_.wait(turn);
            for_each([&](int tile, const Place& place) {
                product_.multiply(turn, tile);
                if (place.is_real) {
                    const float from_following =
                        step == place.length - 1
                            ? of(call_.grad_final_hidden, index_of(place))
                            : product_.total(place.row % rows_of_matrix, place.column);
                    if (step >= 0) {
                        finish(step, tile, place, kept[tile], from_following);
                    } else {
                        end(tile, place, from_following);
                    }
                }
                __syncthreads();
            });
            product_.arrive_at_next();
        }
    }

 private:
    // What the forward kept of a sample's step, and its output's gradient: read before the wait.
    struct Kept {
        float activated[gates];  // the gates; of an RNN its state
        float cell;
        float cell_before;
        float grad_output;
    };

    __device__ Kept kept_of(const Place& place, int64_t step) const {
        const int64_t row = position_at(place, step);
        const int64_t at = row * shape_.hidden + place.unit;
        Kept kept{};
        kept.grad_output = of(call_.grad_output, at);
        if constexpr (gates == 1) {
            kept.activated[0] = widened(call_.output[at]);
        } else {
            const float* from = call_.gates + row * 4 * shape_.hidden + place.unit;
#pragma unroll
            for (int gate = 0; gate < 4; ++gate) kept.activated[gate] = from[gate * shape_.hidden];
            kept.cell = call_.cells[at];
            kept.cell_before =
                step == 0 ? widened(call_.initial_cell[index_of(place)])
                          : call_.cells[position_at(place, step - 1) * shape_.hidden + place.unit];
        }
        return kept;
    }

    template <class Function>
    __device__ void for_each(Function&& function) {
        for_each_tile<units>(shape_, plan_, call_.lengths, function);
    }
    __device__ int64_t index_of(const Place& place) const {
        return place.sample * shape_.hidden + place.unit;
    }
    __device__ int64_t position_at(const Place& place, int64_t step) const {
        return position_of(shape_, place.length, step) * shape_.batch + place.sample;
    }
    __device__ static float of(const T* gradients, int64_t index) {
        return gradients == nullptr ? 0 : widened(gradients[index]);
    }

    __device__ void store(const Place& place, int64_t row, int64_t turn, int gate, float gradient) {
        const T rounded = narrowed<T>(gradient);
        const int64_t column = gate * shape_.hidden + place.unit;
        call_.grad_gates[row * gates * shape_.hidden + column] = rounded;
        product_.row_for(turn, place.row)[column] = rounded;
    }

    __device__ void finish(int64_t step, int tile, const Place& place, const Kept& kept,
                           float from_following) {
        const int64_t next_turn = shape_.steps - step;
        if (step >= place.length) {
            const int64_t row = step * shape_.batch + place.sample;
#pragma unroll
            for (int gate = 0; gate < gates; ++gate) store(place, row, next_turn, gate, 0);
            return;
        }
        const int64_t row = position_at(place, step);
        const float dh = from_following + kept.grad_output;
        if constexpr (gates == 1) {
            store(place, row, next_turn, 0, rnn_gradient(shape_.cell, kept.activated[0], dh));
        } else {
            float& grad_cell = grad_cells_[tile];
            if (step == place.length - 1) grad_cell = of(call_.grad_final_cell, index_of(place));
            const float (&a)[gates] = kept.activated;
            float gradients[4];
            lstm_gradients<float>({a[0], a[1], a[2], a[3]}, kept.cell, kept.cell_before, dh,
                                  grad_cell, gradients);
#pragma unroll
            for (int gate = 0; gate < 4; ++gate)
                store(place, row, next_turn, gate, gradients[gate]);
        }
    }

    __device__ void end(int tile, const Place& place, float from_following) {
        const int64_t index = index_of(place);
        call_.grad_initial_hidden[index] = narrowed<T>(from_following);
        if constexpr (gates == 4) {
            const float gradient =
                place.length == 0 ? of(call_.grad_final_cell, index) : grad_cells_[tile];
            call_.grad_initial_cell[index] = narrowed<T>(gradient);
        }
    }

    const RecurrenceBackward<T>& call_;
    const RecurrenceShape& shape_;
    const RecurrencePlan& plan_;
    Product product_;
    float grad_cells_[most_row_tiles];
};

template <class T, int gates>
__global__ __launch_bounds__(persistent_warps* warp_threads) void persistent_backward(
    RecurrenceBackward<T> call, RecurrencePlan plan, Exchange<T> exchange) {
    PersistentBackward<T, gates>(call, plan, exchange).run();
}

}  // namespace seqkernels::cuda
