// The backward of recurrence_persistent.h, in one kernel that stays for the whole sequence.
//
// The equations, shapes and ownership are recurrence_simple.h's, the product of a step is
// recurrent_product.h's: a block has `units` hidden units, and of weight_hh (G H, H) their columns;
// what the blocks of a slice exchange are the gradients of all gates, (rows, G, units of all
// blocks). A thread of the finishing warps has a sample's unit; the running gradient of its cell
// state stays with it.
//
// Scratch, owned by the caller: Exchange, of the gates' gradients.
//
// Cost of a step: 2 N G H^2 FLOPs and, for each block, rows G H numbers from L2: at N 16, H 768 49
// KB for each of 96 blocks, about 0.9 us at 5 TB/s; expected with their way, sums and gates 1.6 us.
// Measured on an H200, float16: about 2.8 us there.
#pragma once

#include "recurrence_cluster.h"
#include "recurrence_simple.h"
#include "recurrent_product.h"

namespace seqkernels::cuda {

// Nothing follows the last step.
template <class T>
__global__ void clear_exchange(RecurrencePlan plan, Exchange<T> exchange) {
    fill_exchange<T>(plan, exchange, [](int64_t, int64_t) { return T{}; });
}

template <class Exchange, class T, int gates, int sample_tiles>
class PersistentBackward {
    static constexpr int units = 16;  // of a block
    using Entries = RecurrentEntries<Exchange, T, units, 1, sample_tiles>;
    using Place = typename Entries::Place;
    static constexpr int entries = Entries::entries;
    static constexpr int rounds_at_most = Entries::rounds_at_most;
    static constexpr int64_t steps_ahead = Entries::steps_ahead;

 public:
    __device__ PersistentBackward(const RecurrenceBackward<T>& call, const RecurrencePlan& plan,
                                  const Exchange& exchange)
        : call_(call), shape_(call.shape), plan_(plan), exchange_(exchange) {}

    // Turn t is of step T - 1 - t; the last one, of no step, is the initial states'.
    __device__ void multiply() const {
        RecurrentProduct<Exchange, T, units, 1, sample_tiles> product(exchange_, plan_);
        const int units_of_gate = static_cast<int>(plan_.units_padded());
        product.load_weights([&](int k, int, int unit) {
            const int64_t gate = k / units_of_gate, row = k % units_of_gate;
            const int64_t column = exchange_.first_unit() + unit;
            const bool is_real = row < shape_.hidden && column < shape_.hidden;
            return is_real ? call_.weight[(gate * shape_.hidden + row) * shape_.hidden + column]
                           : T{};
        });
        product.run(shape_.steps + 1, rounds());
    }

    __device__ void finish() const {
        Entries all(exchange_, plan_, shape_.steps + 1);
        Running running[rounds_at_most][entries] = {};
        for (int round = 0; round < rounds(); ++round) {
#pragma unroll
            for (int entry = 0; entry < entries; ++entry) {
                const Place place = all.place(shape_, round, entry);
                if (!place.is_real) continue;
                running[round][entry].length = sequence_length(shape_, call_.lengths, place.sample);
            }
        }
        for (int64_t turn = 0; turn <= shape_.steps; ++turn) {
            exchange_.begin_turn(turn);
            const int64_t step = shape_.steps - 1 - turn;
            for (int round = 0; round < rounds(); ++round) {
                Place places[entries] = {};
                Kept kept[entries] = {};
                float totals[entries][1] = {};
#pragma unroll
                for (int entry = 0; entry < entries; ++entry) {
                    places[entry] = all.place(shape_, round, entry);
                    kept[entry] = read_ahead(places[entry], running[round][entry].length, step);
                }
                all.wait(places, totals);
#pragma unroll
                for (int entry = 0; entry < entries; ++entry) {
                    step_of(all, step, places[entry], running[round][entry], kept[entry],
                            totals[entry][0]);
                }
            }
        }
    }

 private:
    // What the forward kept of a sample's step, and its output's gradient.
    struct Kept {
        float activated[gates];  // the gates; of an RNN its state
        float cell;
        float cell_before;
        float grad_output;
    };

    // What stays with a sample's unit.
    struct Running {
        float grad_cell;
        int64_t length;
    };

    __device__ int rounds() const { return Entries::rounds_of(plan_); }

    __device__ Kept read_ahead(const Place& place, int64_t length, int64_t step) const {
        if (step >= steps_ahead && step - steps_ahead < length) {
            prefetch_kept(place, length, step - steps_ahead);
        }
        Kept kept{};
        if (step < 0 || step >= length) return kept;
        const int64_t row = row_of(shape_, place.sample, length, step);
        const int64_t at = row * shape_.hidden + place.unit;
        kept.grad_output = of(call_.grad_output, at);
        if constexpr (gates == 1) {
            kept.activated[0] = widened(call_.output[at]);
        } else {
            const float* from = call_.gates + row * 4 * shape_.hidden + place.unit;
#pragma unroll
            for (int gate = 0; gate < 4; ++gate) kept.activated[gate] = from[gate * shape_.hidden];
            kept.cell = call_.cells[at];
            kept.cell_before =
                step == 0
                    ? widened(call_.initial_cell[place.in_states(shape_)])
                    : call_.cells[row_of(shape_, place.sample, length, step - 1) * shape_.hidden +
                                  place.unit];
        }
        return kept;
    }

    __device__ void prefetch_kept(const Place& place, int64_t length, int64_t step) const {
        const int64_t row = row_of(shape_, place.sample, length, step);
        const int64_t at = row * shape_.hidden + place.unit;
        if (call_.grad_output != nullptr) prefetch(call_.grad_output + at);
        if constexpr (gates == 1) {
            prefetch(call_.output + at);
        } else {
            const float* from = call_.gates + row * 4 * shape_.hidden + place.unit;
#pragma unroll
            for (int gate = 0; gate < 4; ++gate) prefetch(from + gate * shape_.hidden);
            if (step > 0) {
                prefetch(call_.cells +
                         row_of(shape_, place.sample, length, step - 1) * shape_.hidden +
                         place.unit);
            }
        }
    }

    __device__ static float of(const T* gradients, int64_t index) {
        return gradients == nullptr ? 0 : widened(gradients[index]);
    }

    // total: the product with the gradients of the following step.
    __device__ void step_of(const Entries& all, int64_t step, const Place& place, Running& running,
                            const Kept& kept, float total) const {
        const bool runs = step >= 0 && step < running.length;
        const float from_following = step == running.length - 1 && place.is_real
                                         ? of(call_.grad_final_hidden, place.in_states(shape_))
                                         : total;
        if (step < 0) {
            if (place.is_real) end(running, place, from_following);
            return;
        }
        const float dh = from_following + kept.grad_output;
        float gradients[gates] = {};
        if constexpr (gates == 1) {
            if (runs) gradients[0] = rnn_gradient(shape_.cell, kept.activated[0], dh);
        } else if (runs) {
            if (step == running.length - 1) {
                running.grad_cell = of(call_.grad_final_cell, place.in_states(shape_));
            }
            const float (&a)[gates] = kept.activated;
            lstm_gradients<float>({a[0], a[1], a[2], a[3]}, tanh_for<T>(kept.cell),
                                  kept.cell_before, dh, running.grad_cell, gradients);
        }
        T rounded[gates];
#pragma unroll
        for (int gate = 0; gate < gates; ++gate) {
            rounded[gate] = narrowed<T>(gradients[gate]);
            all.give(shape_.steps - step, place, gate, rounded[gate]);
        }
        if (!place.is_real) return;
        const int64_t row = runs ? row_of(shape_, place.sample, running.length, step)
                                 : step * shape_.batch + place.sample;
#pragma unroll
        for (int gate = 0; gate < gates; ++gate) {
            call_.grad_gates[(row * gates + gate) * shape_.hidden + place.unit] = rounded[gate];
        }
    }

    __device__ void end(const Running& running, const Place& place, float from_following) const {
        const int64_t index = place.in_states(shape_);
        call_.grad_initial_hidden[index] = narrowed<T>(from_following);
        if constexpr (gates == 4) {
            const float gradient =
                running.length == 0 ? of(call_.grad_final_cell, index) : running.grad_cell;
            call_.grad_initial_cell[index] = narrowed<T>(gradient);
        }
    }

    const RecurrenceBackward<T>& call_;
    const RecurrenceShape& shape_;
    const RecurrencePlan& plan_;
    const Exchange& exchange_;
};

template <class T, int gates, int sample_tiles>
__global__ __launch_bounds__(persistent_threads,
                             1) void persistent_backward(RecurrenceBackward<T> call,
                                                         RecurrencePlan plan,
                                                         Exchange<T> exchange) {
    using Own = MemoryExchange<T>;
    const Own own(call.shape, plan, exchange, call.shape.steps);
    const PersistentBackward<Own, T, gates, sample_tiles> backward(call, plan, own);
    share_work([&] { backward.multiply(); }, [&] { backward.finish(); });
}

template <class T, int gates>
__global__ __launch_bounds__(persistent_threads,
                             1) void cluster_backward(RecurrenceBackward<T> call,
                                                      RecurrencePlan plan, Exchange<T>) {
    using Own = ClusterExchange<T>;
    const Own own(call.shape, plan, call.shape.steps, [](int64_t, int64_t) { return T{}; });
    const PersistentBackward<Own, T, gates, 1> backward(call, plan, own);
    share_work([&] { backward.multiply(); }, [&] { backward.finish(); });
    own.end();
}

}  // namespace seqkernels::cuda
