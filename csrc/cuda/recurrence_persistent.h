// An LSTM or RNN of 16-bit or float32 numbers in one kernel that stays for the whole sequence.
//
// The equations, shapes and ownership are recurrence_simple.h's, the product of a step is
// recurrent_product.h's: a block has the recurrent weights of `units` hidden units, all gates of
// them, for a slice of the batch. A thread of the finishing warps has a sample's unit: gates, the
// cell state, which stays with it, and the new state, which it gives the other blocks of the slice;
// other slices it never meets. Its projections of a step are asked for before it waits.
//
// Scratch, owned by the caller: Exchange, of the states.
//
// Cost of a step: 2 N G H^2 FLOPs and, for each block, rows H states from L2. Expected on an H100
// at N 16, H 768: 2 slices of 48 blocks of 16 units; 0.45 us for a state's way through L2, 0.2 us
// for 12 KiB of them into each block, 0.1 us for 24 products a warp, 0.15 us for sums and gates:
// 0.9 us. Measured on an H200, an LSTM in float16, 1024 steps: N 16, H 768 1.95 us; within clusters
// N 16, H 256 1.13 us, H 128 0.94, N 1, H 128 0.81; N 64, H 512 3.1 us; float32, N 16, H 512 4.3.
// An earlier form, whose warps multiplied and finished, took 3260 clocks there, of them 470 for the
// products, 205 for their sums and 370 for gates; the rest was the states' way.
//
// Tried at N 16, H 768: a counter that all blocks raise in place of words that are there or not 3.9
// us; slices of 16 samples 3.5; the warps that multiply finishing too 2.2; all groups looked for
// again and again at once 2.1. At H 512 clusters with 32 units a block: as long as through memory,
// with 16 samples twice as long.
#pragma once

#include "recurrence_cluster.h"
#include "recurrence_simple.h"
#include "recurrent_product.h"

namespace seqkernels::cuda {

// The states before the first step.
template <class T>
__device__ inline T initial_state(const RecurrenceForward<T>& call, int64_t sample, int64_t unit) {
    const RecurrenceShape& shape = call.shape;
    const bool is_real = unit < shape.hidden && sample < shape.batch;
    return is_real ? call.initial_hidden[sample * shape.hidden + unit] : T{};
}
template <class T>
__global__ void begin_exchange(RecurrenceForward<T> call, RecurrencePlan plan,
                               Exchange<T> exchange) {
    fill_exchange<T>(plan, exchange, [&](int64_t sample, int64_t unit) {
        return initial_state(call, sample, unit);
    });
}

template <class Exchange, class T, int gates, int units, int sample_tiles>
class PersistentForward {
    using Entries = RecurrentEntries<Exchange, T, units, gates, sample_tiles>;
    using Place = typename Entries::Place;
    static constexpr int entries = Entries::entries;
    static constexpr int rounds_at_most = Entries::rounds_at_most;
    static constexpr int64_t steps_ahead = Entries::steps_ahead;

 public:
    __device__ PersistentForward(const RecurrenceForward<T>& call, const RecurrencePlan& plan,
                                 const Exchange& exchange)
        : call_(call), shape_(call.shape), plan_(plan), exchange_(exchange) {}

    __device__ void multiply() const {
        RecurrentProduct<Exchange, T, units, gates, sample_tiles> product(exchange_, plan_);
        product.load_weights([&](int64_t k, int gate, int unit) {
            const int64_t row = exchange_.first_unit() + unit;
            const bool is_real = k < shape_.hidden && row < shape_.hidden;
            return is_real ? call_.weight[(gate * shape_.hidden + row) * shape_.hidden + k] : T{};
        });
        product.run(shape_.steps, rounds());
    }

    __device__ void finish() const {
        Entries all(exchange_, plan_, shape_.steps);
        Kept kept[rounds_at_most][entries] = {};
        float biases[gates] = {};
        for (int round = 0; round < rounds(); ++round) {
#pragma unroll
            for (int entry = 0; entry < entries; ++entry) {
                begin(all.place(shape_, round, entry), kept[round][entry], biases);
            }
        }
        for (int64_t step = 0; step < shape_.steps; ++step) {
            exchange_.begin_turn(step);
            for (int round = 0; round < rounds(); ++round) {
                Place places[entries] = {};
                float sums[entries][gates] = {}, projected[entries][gates] = {};
#pragma unroll
                for (int entry = 0; entry < entries; ++entry) {
                    places[entry] = all.place(shape_, round, entry);
                    read_ahead(places[entry], kept[round][entry].length, step, projected[entry]);
                }
                all.wait(places, sums);
#pragma unroll
                for (int entry = 0; entry < entries; ++entry) {
#pragma unroll
                    for (int gate = 0; gate < gates; ++gate) {
                        sums[entry][gate] += projected[entry][gate] + biases[gate];
                    }
                    step_of(all, step, places[entry], kept[round][entry], sums[entry]);
                }
            }
        }
    }

 private:
    // What stays with a sample's unit.
    struct Kept {
        float cell;
        int64_t length;
    };

    __device__ int rounds() const { return Entries::rounds_of(plan_); }

    __device__ const float* projections_of(const Place& place, int64_t length, int64_t step) const {
        return call_.projections +
               row_of(shape_, place.sample, length, step) * gates * shape_.hidden + place.unit;
    }

    __device__ void begin(const Place& place, Kept& kept, float (&biases)[gates]) const {
        if (!place.is_real) return;
        const int64_t index = place.in_states(shape_);
        kept.length = sequence_length(shape_, call_.lengths, place.sample);
        if (gates == 4) kept.cell = widened(call_.initial_cell[index]);
        if (kept.length == 0) {
            call_.final_hidden[index] = call_.initial_hidden[index];
            if (gates == 4) call_.final_cell[index] = call_.initial_cell[index];
        }
#pragma unroll
        for (int gate = 0; gate < gates; ++gate) {
            const int64_t row = gate * shape_.hidden + place.unit;
            float bias = call_.bias_ih == nullptr ? 0 : widened(call_.bias_ih[row]);
            bias += call_.bias_hh == nullptr ? 0 : widened(call_.bias_hh[row]);
            biases[gate] = bias;  // the unit is the same in every entry
        }
    }

    __device__ void read_ahead(const Place& place, int64_t length, int64_t step,
                               float (&projected)[gates]) const {
#pragma unroll
        for (float& number : projected) number = 0;
        if (step < length) {
            const float* from = projections_of(place, length, step);
#pragma unroll
            for (int gate = 0; gate < gates; ++gate) projected[gate] = from[gate * shape_.hidden];
        }
        if (step + steps_ahead < length) {
            const float* from = projections_of(place, length, step + steps_ahead);
#pragma unroll
            for (int gate = 0; gate < gates; ++gate) prefetch(from + gate * shape_.hidden);
        }
    }

    __device__ void step_of(const Entries& all, int64_t step, const Place& place, Kept& kept,
                            const float (&sums)[gates]) const {
        float state = 0, cell = kept.cell;
        [[maybe_unused]] LstmGates<float> activated{};
        if constexpr (gates == 4) {
            activated = {sigmoid_for<T>(sums[0]), sigmoid_for<T>(sums[1]), tanh_for<T>(sums[2]),
                         sigmoid_for<T>(sums[3])};
            cell = activated.f * cell + activated.i * activated.g;
            state = activated.o * tanh_for<T>(cell);
        } else {
            state = rnn_state(shape_.cell, sums[0]);
        }
        const bool runs = step < kept.length;
        const T rounded = runs ? narrowed<T>(state) : T{};
        all.give(step + 1, place, 0, rounded);
        if (!place.is_real) return;
        const int64_t index = place.in_states(shape_);
        if (!runs) {
            call_.output[step * shape_.batch * shape_.hidden + index] = T{};
            return;
        }
        kept.cell = cell;
        const int64_t at = row_of(shape_, place.sample, kept.length, step);
        call_.output[at * shape_.hidden + place.unit] = rounded;
        if constexpr (gates == 4) {
            if (call_.gates != nullptr) {
                float* stored = call_.gates + at * 4 * shape_.hidden + place.unit;
                stored[0] = activated.i;
                stored[shape_.hidden] = activated.f;
                stored[2 * shape_.hidden] = activated.g;
                stored[3 * shape_.hidden] = activated.o;
                call_.cells[at * shape_.hidden + place.unit] = cell;
            }
        }
        if (step == kept.length - 1) {
            call_.final_hidden[index] = rounded;
            if (gates == 4) call_.final_cell[index] = narrowed<T>(cell);
        }
    }

    const RecurrenceForward<T>& call_;
    const RecurrenceShape& shape_;
    const RecurrencePlan& plan_;
    const Exchange& exchange_;
};

template <class T, int gates, int units, int sample_tiles>
__global__ __launch_bounds__(persistent_threads,
                             1) void persistent_forward(RecurrenceForward<T> call,
                                                        RecurrencePlan plan, Exchange<T> exchange) {
    using Own = MemoryExchange<T>;
    const Own own(call.shape, plan, exchange, call.shape.steps - 1);
    const PersistentForward<Own, T, gates, units, sample_tiles> forward(call, plan, own);
    share_work([&] { forward.multiply(); }, [&] { forward.finish(); });
}

template <class T, int gates>
__global__ __launch_bounds__(persistent_threads, 1) void cluster_forward(RecurrenceForward<T> call,
                                                                         RecurrencePlan plan,
                                                                         Exchange<T>) {
    using Own = ClusterExchange<T>;
    const Own own(call.shape, plan, call.shape.steps - 1,
                  [&](int64_t sample, int64_t unit) { return initial_state(call, sample, unit); });
    const PersistentForward<Own, T, gates, 16, 1> forward(call, plan, own);
    share_work([&] { forward.multiply(); }, [&] { forward.finish(); });
    own.end();
}

}  // namespace seqkernels::cuda
