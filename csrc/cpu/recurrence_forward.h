// One layer and direction of an LSTM or plain RNN over a batch of sequences, in one parallel
// region.
//
//   a_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
//   LSTM: i, f, g, o = sigmoid(a^i), sigmoid(a^f), tanh(a^g), sigmoid(a^o)
//         c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
//   RNN:  h_t = tanh(a) or max(a, 0)
// for t = 0 .. length - 1 of each sample, or back from length - 1 to 0 when `reverse`. Outputs
// beyond a sample's length are zero; its final state is that of its own last step.
//
// Shapes and ownership: RecurrenceForward in kernels.h. No output aliases an input, and none
// another. Scratch, owned by the call: both weights packed, G H (I + H), but those that are read as
// they lie; the inputs' part of a few steps (input_projection.h); that of the schedule; for
// each thread pointers for the rows of one step; of numbers narrower than the sums, the running
// cell states, N H; and in matrix tiles for each thread a panel of weights, and the states of one
// step or the inputs of some rows as they are multiplied; recurrent weights that are read row by
// row, but whose numbers do not lie side by side, in rows.
//
// A few steps ahead each thread projects the inputs of its samples with its panels. To these sums
// the recurrent weights' part is added step after step, packed so that a hidden unit's gates come
// out of one tile, whose epilogue computes gates and state in registers. Measured, against one
// product of all inputs beforehand, in turns (family 6, model 167, two threads, N 64, T 50, H 512):
// bfloat16 12.9 to 10.7 ms, float32 36.5 to 31.9.
//
// Packing is paid by the call, so where weights are used a few times only they are multiplied (by
// vectors; in matrix tiles they are always packed) as they lie, panel after panel
// (unpacked_product.h): the input weights by few rows, the recurrent ones in few steps. Threads
// that split the hidden units pack the recurrent weights in their first step. From a state of zeros
// that are not given the first step does not read them. Measured, times faster than packed (AMD Zen
// 3 at AVX2, two threads, float32 LSTM, H 128 to 1024, N 1 to 64):
//   recurrent weights   2 steps 1.02 to 1.37   4 steps 0.96 to 1.15   8 steps 0.81 to 1.08
//   input weights       up to 128 rows 1.02 to 1.40, once 0.88   240 to 300 rows 0.87 to 1.08
//
// Where the recurrent weights come from beyond the caches, steps of few samples read them row by
// row, as a single step does (unpacked_rows.h), and nothing is packed. The order of their sums
// differs from that of packed ones. Inputs of up to 512 rows are then projected all at once, with
// weights that are read as they lie, once. Measured, in turns, packed / rows / rows and inputs at
// once, ms (family 6, model 167, two threads, float32 LSTM):
//   T 25, H 1024   N 1 8.4/7.4/7.7                          N 4 10.7/9.9/10.0
//   T 50, H 1536   N 1 38.5/37.3/34.9   N 2 43.6/42.6/38.9   N 4 55.5/54.5/47.7
//   T 25, H 2048   N 1 38.4/34.5/34.4                       N 4 56.1/53.4/48.4
// Packed was faster from 6 samples on (T 400, H 1024: 189 ms, rows 207); 400 steps of 1, 2 and 4
// samples took, packed / rows, 123/120, 137/141 and 167/169.
// On another processor three samples and more are better packed, but for few steps; how many there
// are does not decide, so that a sequence that goes on keeps its bits (AMD family 26, 32 MiB of L3;
// packed / rows, each with its way of taking the inputs):
//   H 1024   N 1, T 25 3.6/3.2, T 200 20.1/21.4   N 2, T 25 4.3/4.2, T 200 25.2/27.7
//            N 3, T 6 2.4/1.6, T 12 3.0/2.8       N 4, T 6 2.3/2.0, T 12 3.5/3.4, T 25 5.5/5.6
//   H 1536, T 50, N 4 29.0/41.7   H 2048   N 1, T 50 54.5/56.6   N 2, T 50 59.5/62.6
//   RNN of H 1760, T 50, N 4 7.1/9.3
// There one core reads rows for one sample at 113 GB/s from L3 and 51 from memory, for four at 67
// and 26, packed ones for four at 96 and 41, and with what follows fetched, which did nothing for
// rows, at 95 and 53: the core, it is supposed, runs ahead only as far as its queue of
// multiply-adds is long.
//
// Panels of recurrent weights pass there and back again, step by step, so that what L2 holds of
// them is used twice: 10 to 22 % less time where they do not fit there (family 6, model 167, 2 MiB
// of L2: LSTM of N 1, H 512 1.44 to 1.12 ms; H 1024 10.9 to 9.8 ms; RNN of H 1760 8.0 to 6.7 ms).
//
// A step of few rows takes what reading the weights takes: for N 1, H 2048, 24 steps that read 67
// MB at 50 GB/s, what the processor's last cache gives two threads, would be 32 of those 34 ms.
//
// In matrix tiles (AMX) the states of a block of rows and a panel are computed while the tile unit
// multiplies the next block: eight instructions there take 64 cycles.
// Measured, in turns (family 6, model 167, two threads, T 50, inference): N 64, H 512 9.0 to 7.8
// ms in bfloat16, 28.1 to 26.0 in float32; H 256 2.6 to 2.5 and 8.9 to 8.1; N 16, H 256 float32 2.3
// to 2.2. Tried without gain: all panels for 32 rows, then for the next 32 (H 256 8 % slower).
//
// Gates for the backward that no cache holds until then are written past the caches: an LSTM's
// forward of N 64, T 50, H 512 from 16.1 to 12.6 ms in bfloat16, 36.6 to 33.5 in float32; 13 MB of
// them, H 256, up to 8 % slower.
//
// Cost: 2 T N G H (I + H) FLOPs, and N T H evaluations of 5 (1) exponentials and divisions. Bytes:
// at each step the recurrent weights from the nearest cache that holds them. Limit: multiply-adds
// for N above some 16, the bandwidth of that cache below.
#pragma once

#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "input_projection.h"
#include "processor.h"
#include "product.h"
#include "recurrence_schedule.h"
#include "recurrence_single_step.h"
#include "recurrent_states.h"
#include "unpacked_product.h"
#include "unpacked_rows.h"
#include "vector_product.h"

namespace seqkernels {

// Number: what input, states and output hold.
template <class Vector, RecurrentCell cell_type, class Product, class Number>
class RecurrenceForwardKernel {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    using Projection = InputProjection<Vector, Product, Number>;
    using States = RecurrentStates<Vector, cell_type, Number>;
    using Row = typename States::Row;
    static constexpr int gates = States::gates;
    static constexpr int panel_units = gates == 4 ? 1 : Product::vectors;
    // Rows whose sums are kept while a panel passes: whole tiles.
    static constexpr int64_t block_rows = unpacked_block_rows;
    // Matrix tiles (AMX) multiply one block while vectors compute the states of the one before. Of
    // pairs by vectors one follows the other, but one block of sums in place of two is up to 2 %
    // slower (AMD family 26).
    static constexpr int sum_blocks = Product::in_tiles ? 2 : 1;
    // Weights are then packed before they are multiplied.
    static constexpr bool always_packs = Product::in_tiles;
    // In so few steps packing the recurrent weights does not pay.
    static constexpr int64_t most_steps_unpacked = 4;

 public:
    explicit RecurrenceForwardKernel(const RecurrenceForward<Number>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(shape_, arguments.lengths, arguments.batch_sizes),
          states_(arguments, schedule_),
          input_layout_{shape_.hidden, shape_.inputs, panel_units, gates},
          hidden_layout_{shape_.hidden, shape_.hidden, panel_units, gates} {}

    void run(int most_threads) {
        const Grid of_all = grid_of(most_threads);
        // Others would do nothing but pack.
        const int threads = static_cast<int>(of_all.row_parts * of_all.column_parts);
        const Projection projection(input_layout_, call_.weight_ih, schedule_.row_count(),
                                    shape_.batch, is_in_wavefront(), threads);
        const Scratch<T> cell_states(states_.running_cell_elements());
        const bool reads_rows = !always_packs && reads_weight_rows();
        const bool steps_unpacked =
            reads_rows || (!always_packs && schedule_.longest() <= most_steps_unpacked);
        const Scratch<Packed> hidden_weights(
            steps_unpacked ? 0 : Product::packed_elements(hidden_layout_));
        const int64_t most_rows = shape_.batch + 1;
        const Scratch<Row> rows(checked_product({most_rows, threads}));
        const Scratch<const Number*> states(checked_product({most_rows, threads}));
        const int64_t most_copies = larger(Product::left_elements(most_rows, shape_.hidden),
                                           Projection::left_elements(input_layout_));
        const Scratch<Left> copies(checked_product({most_copies, threads}));
        const Scratch<T> scales(checked_product({most_rows, threads}));
        const int64_t panel_elements = larger(Product::pack_scratch_elements(input_layout_),
                                              Product::pack_scratch_elements(hidden_layout_));
        const Scratch<T> panel_scratch(checked_product({panel_elements, threads}));
        const bool copies_rows = reads_rows && call_.weight_hh.stride_column != 1;
        const int64_t weight_rows = gates * shape_.hidden;
        const Scratch<T> copied_rows(copies_rows ? checked_product({weight_rows, shape_.hidden})
                                                 : 0);
        weight_rows_ = call_.weight_hh;
        if (copies_rows) {
            weight_rows_ = {{copied_rows.data(), weight_rows_.numbers.type}, shape_.hidden, 1};
        }
        hidden_weights_ = hidden_weights.data();
        states_.place_cell_states(cell_states.data());

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            const Grid grid = grid_of(granted);
            // Where each thread's panels are its own, it packs them in its first step.
            const bool packs_on_the_way =
                !always_packs && grid.row_parts == 1 && shape_.batch <= block_rows;
            [[maybe_unused]] const typename Product::Session session{};
            T* panel = panel_scratch.data() + thread * panel_elements;
            if (!steps_unpacked && !packs_on_the_way) {
                pack_hidden_weights(panel, thread, granted);
            }
            if (copies_rows) {
                copy_rows(call_.weight_hh, part_of(weight_rows, 1, thread, granted), shape_.hidden,
                          copied_rows.data());
            }
            projection.pack(panel, thread, granted);
            projection.set_bias(
                [&](int64_t gate, int64_t unit) {
                    return states_.bias(gate * shape_.hidden + unit, shape_.hidden - unit);
                },
                thread, granted);
            states_.widen_cell_states(thread, granted);
            barrier.wait(granted);
            const Samples mine{rows.data() + thread * most_rows, states.data() + thread * most_rows,
                               copies.data() + thread * most_copies,
                               scales.data() + thread * most_rows};
            const typename Projection::Part part(
                projection, grid.columns(hidden_layout_.panels(), thread), thread, granted);
            int64_t projected = 0;
            for (int64_t step = 0, row = 0; step < schedule_.longest(); ++step) {
                if (step == projected) {
                    projected = project_from(step, grid, thread, part, mine.copies);
                    row = 0;
                }
                if (step > 0 && grid.column_parts > 1) barrier.wait(granted);
                run_step(step, grid, thread, mine, part, row,
                         weights_of(step, reads_rows, steps_unpacked, packs_on_the_way));
                row += grid.dealt(schedule_.active(step), thread);
                say_made(step + 1);
            }
            states_.end_steps();
            barrier.wait(granted);
            states_.finish(part_of(shape_.batch, 1, thread, granted));
        });
    }

 private:
    // A thread's samples of one step, and the states before it.
    struct Samples {
        Row* rows;
        const Number** states;
        Left* copies;  // of the states, as they are multiplied, if that is otherwise
        T* scales;
    };

    // The states that come of the sums of a block of rows and a panel, computed while the next
    // block is multiplied (Meanwhile in product.h). Turns leave each other nothing: with counters
    // that each of them wrote, bfloat16, N 64, H 512 took 9.5 ms in place of 8.8 (tile loads, it is
    // supposed, wait for stores that lie a multiple of 4 KiB away).
    class StatesToCome {
     public:
        explicit StatesToCome(const States& states) : states_(states) {}

        void begin(const Row* rows, int64_t count, int64_t column, int64_t units,
                   const Vector* sums) {
            rows_ = rows, column_ = column, units_ = units, sums_ = sums;
            count_ = count * units;
            in_turns(0);
        }
        void in_turns(int64_t turns) {
            turns_ = turns;
            share_ = turns == 0 ? 0 : (count_ << share_bits) / turns;
        }
        void operator()(int64_t turn) const { compute(before(turn), before(turn + 1)); }
        // Those that no turn came for.
        void finish() {
            compute(before(turns_), count_);
            count_ = 0;
            in_turns(0);
        }

     private:
        static constexpr int share_bits = 32;
        int64_t before(int64_t turn) const { return (turn * share_) >> share_bits; }
        void compute(int64_t begin, int64_t end) const {
            for (int64_t i = begin; i < end; ++i) compute(i);
        }
        [[gnu::noinline]] void compute(int64_t i) const {
            const int64_t row = panel_units == 1 ? i : i / units_;
            const int64_t unit = i - row * units_;
            states_.next(rows_[row], column_ + unit * Vector::width, sums_ + i * gates);
        }

        const States& states_;
        const Row* rows_ = nullptr;
        const Vector* sums_ = nullptr;
        int64_t column_ = 0, units_ = 1, count_ = 0;
        int64_t turns_ = 0, share_ = 0;  // states a turn, times 2^share_bits
    };

    // How a step reads the recurrent weights.
    enum class Weights { packed, packed_on_the_way, as_they_lie, row_by_row, not_at_all };

    Weights weights_of(int64_t step, bool reads_rows, bool unpacked, bool packs_on_the_way) const {
        const int64_t first = call_.initial_hidden == nullptr ? 1 : 0;
        if (step < first) return Weights::not_at_all;
        if (reads_rows) return Weights::row_by_row;
        if (unpacked) return Weights::as_they_lie;
        return step == first && packs_on_the_way ? Weights::packed_on_the_way : Weights::packed;
    }

    // Whether few samples' steps read the recurrent weights row by row, as a single step does:
    // where they come from beyond the caches.
    bool reads_weight_rows() const {
        const int64_t most_samples = is_by_intel() ? 4 : 2;
        return shape_.batch <= most_samples && is_beyond_caches(hidden_layout_);
    }

    Grid grid_of(int threads) const {
        return recurrence_grid<Product>(shape_, hidden_layout_.panels(), hidden_layout_, threads);
    }

    void pack_hidden_weights(T* scratch, int thread, int threads) const {
        const Range panels = part_of(hidden_layout_.panels(), 1, thread, threads);
        Product::pack_matrix(hidden_weights_, hidden_layout_, panels, scratch, call_.weight_hh);
    }

    bool is_in_wavefront() const {
        return call_.input_steps != nullptr || call_.output_steps != nullptr;
    }
    // Steps that are waited for, and projected, together where another thread makes the inputs:
    // few, of a sequence that is not long, since who waits begins so much later.
    int64_t steps_awaited() const {
        constexpr int64_t most_rows = 8;
        return larger(1, smaller(most_rows / shape_.batch, schedule_.longest() / most_rows));
    }
    void say_made(int64_t steps) const {
        if (call_.output_steps == nullptr) return;
        if (steps % steps_awaited() == 0 || steps == schedule_.longest()) {
            call_.output_steps->raise_to(static_cast<unsigned>(steps));
        }
    }

    // Step after step is projected until a thread's room is full; returns the first that is not.
    int64_t project_from(int64_t step, const Grid& grid, int thread,
                         const typename Projection::Part& part, Left* copies) const {
        int64_t end = schedule_.longest();
        if (is_in_wavefront()) end = smaller(end, step + steps_awaited());
        if (call_.input_steps != nullptr) call_.input_steps->wait_for(static_cast<unsigned>(end));
        int64_t rows = 0;
        for (; step < end; ++step) {
            const int64_t count = grid.dealt(schedule_.active(step), thread);
            if (rows > 0 && !part.has_room(rows, count)) break;
            for (int64_t i = 0; i < count; ++i) {
                part.given()[rows++] =
                    schedule_.input_row(call_.input, sample_of(i, grid, thread), step);
            }
        }
        part.project(rows, copies);
        return step;
    }

    int64_t sample_of(int64_t i, const Grid& grid, int thread) const {
        return schedule_.sample(grid.row_part(thread) + i * grid.row_parts);
    }

    // row: the first of the step's projections
    void run_step(int64_t step, const Grid& grid, int thread, const Samples& mine,
                  const typename Projection::Part& part, int64_t row, Weights weights) const {
        const int64_t count = grid.dealt(schedule_.active(step), thread);
        for (int64_t i = 0; i < count; ++i) {
            mine.rows[i] = states_.row(sample_of(i, grid, thread), step);
            mine.states[i] = mine.rows[i].hidden_before;
        }
        const bool multiplies = weights != Weights::not_at_all;
        const auto states = Product::prepare(mine.states, Range{0, multiplies ? count : 0},
                                             shape_.hidden, mine.copies, mine.scales);
        const Range panels = grid.columns(hidden_layout_.panels(), thread);
        Vector sums[sum_blocks][block_rows * (panel_units * gates)];
        StatesToCome states_to_come(states_);
        int next = 0;
        for (int64_t position = panels.begin; position < panels.end; ++position) {
            // There and back again: the weights that the last step read last are still in L2.
            const int64_t panel =
                step % 2 == 0 ? position : panels.begin + panels.end - 1 - position;
            for (int64_t i = 0; i < count; i += block_rows) {
                const int64_t block = smaller(block_rows, count - i);
                Vector* const of_block = sums[next];
                sum_up(of_block, part.at(panel, row + i), states.from(i), block, panel, weights,
                       states_to_come);
                states_to_come.finish();
                states_to_come.begin(mine.rows + i, block, hidden_layout_.first_column(panel),
                                     hidden_layout_.units_of(panel), of_block);
                if (sum_blocks == 1) states_to_come.finish();
                next = (next + 1) % sum_blocks;
            }
        }
        states_to_come.finish();
    }

    // sums = the projections of `count` samples, and the recurrent weights' part, for one panel;
    // meanwhile, where there is time, the states to come.
    void sum_up(Vector* sums, const Vector* projections,
                const typename Product::template Rows<Number>& states, int64_t count, int64_t panel,
                Weights weights, StatesToCome& states_to_come) const {
        const int64_t line = hidden_layout_.units_of(panel) * gates;
        if (weights == Weights::packed) {
            Product::multiply_from(sums, projections, line, states, count, hidden_layout_, panel,
                                   hidden_weights_, call_.weight_hh, states_to_come);
            return;
        }
        begin_sums(sums, projections, line, count, line);
        if constexpr (!always_packs) {
            if (weights == Weights::packed_on_the_way) {
                multiply_and_pack(sums, states.given, count, hidden_layout_, panel, hidden_weights_,
                                  call_.weight_hh);
            }
            if (weights == Weights::as_they_lie) {
                multiply_unpacked(sums, states.given, count, hidden_layout_, panel,
                                  call_.weight_hh);
            }
            if (weights == Weights::row_by_row) {
                add_rows(sums, states.given, count, panel);
            }
        }
    }

    // Adds the products of `count` states with the recurrent weights' rows of one panel.
    void add_rows(Vector* sums, const T* const* states, int64_t count, int64_t panel) const {
        const int64_t hidden = shape_.hidden, line = hidden_layout_.units_of(panel) * gates;
        const Term<T> terms[most_terms] = {{states, weight_rows_, hidden}, {}};
        for (int64_t i = 0; i < line; ++i) {
            const int64_t unit = hidden_layout_.first_column(panel) + i / gates * Vector::width;
            add_terms(sums + i, line, count, i % gates * hidden + unit,
                      smaller(Vector::width, hidden - unit), terms, nullptr);
        }
    }

    const RecurrenceForward<Number>& call_;
    const RecurrenceShape& shape_;
    const Schedule schedule_;
    States states_;
    const PanelLayout<Vector> input_layout_;
    const PanelLayout<Vector> hidden_layout_;
    Packed* hidden_weights_ = nullptr;
    Matrix weight_rows_{};  // the recurrent weights, if they are read row by row
};

template <class Vector, class Product, class Number>
void recurrence_forward_by(const RecurrenceForward<Number>& arguments, int threads) {
    with_cell(arguments.shape.cell, [&](auto cell) {
        if constexpr (!Product::in_tiles) {
            if (arguments.shape.steps == 1) {
                RecurrenceSingleStep<Vector, cell()>(arguments).run(threads);
                return;
            }
        }
        RecurrenceForwardKernel<Vector, cell(), Product, Number>(arguments).run(threads);
    });
}

template <class Vector, class Product = VectorProduct<Vector>>
void recurrence_forward(const RecurrenceForward<typename Vector::Element>& arguments, int threads) {
    if constexpr (Product::in_tiles) {
        if (!Product::pays_for(arguments.shape)) {
            return recurrence_forward<Vector>(arguments, threads);
        }
    }
    recurrence_forward_by<Vector, Product>(arguments, threads);
}

}  // namespace seqkernels
