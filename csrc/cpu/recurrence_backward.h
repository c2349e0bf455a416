// Gradients of one layer and direction of an LSTM or plain RNN: backpropagation through time.
//
// With a_t the gates before their activations (recurrence_forward.h), back from each sample's last
// step:
//   dh_t = grad_output_t + W_hh^T da_{t+1}              (grad_final_hidden at the last step)
//   LSTM: dc_t += dh_t o (1 - tanh(c_t)^2)              (grad_final_cell at the last step)
//         da^i = dc g i (1 - i),  da^f = dc c_{t-1} f (1 - f),  da^g = dc i (1 - g^2),
//         da^o = dh tanh(c) o (1 - o),  dc_{t-1} = dc f
//   RNN:  da = dh (1 - h^2), or dh where h > 0
// and over the rows of many steps at once what recurrence_row_gradients.h computes of da: the
// gradients of inputs, weights and biases.
//
// Shapes and ownership: RecurrenceBackward in kernels.h. No output aliases an input, and none
// another. Scratch, owned by the call: W_hh packed the other way round, G H H; da of the rows that
// are multiplied together and of two steps, G H each; that of recurrent_gradients.h and
// recurrence_row_gradients.h; that of the schedule; for each thread pointers for the rows
// of one step; sums of block_rows rows, twice for each half; and in matrix tiles, for each thread,
// a panel of weights and the gradients of gates of some rows (row_product.h) as they are
// multiplied.
//
// The steps' products W_hh^T da are added up in two halves, those of the gates of either half of
// the hidden units, so that two threads with the same samples multiply what they have made
// themselves: the sums that they hand each other are N H numbers where all of da would be 4 N H (in
// three planes as many bytes again and half of it). Halves are cut by H alone, so that the order of
// the sums does not depend on the threads. Measured, in turns (family 6, model 167, two threads,
// float32, T 50, H 256, the backward): N 32 10.4 to 9.4 ms.
//
// As soon as there are 4 MiB of da, or a block of rows as the weight gradients take them, these and
// the inputs' gradients are made of them, while they are still in a cache; their room is then used
// again. Measured, in turns, the whole backward in ms, with no MiB, 4, 8 and all (as above):
// float32, N 64, H 512 70.1/69.3/72.6/73.4; bfloat16 21.5/21.1/21.7/22.5, H 256 6.2/5.9/5.9/6.0.
// Where the sums of the weight gradients stay in L2 from block to block (N 16, H 256) more than one
// block is better.
//
// Of a step first all sums are multiplied, then the gradients of gates computed row by row: what
// they need comes from memory, whose reads the processor runs ahead of where they follow each other
// (family 6, model 167, bfloat16, N 64, T 50, H 512: the backward 26.7 to 23.4 ms; panel by panel
// with the next panel's lines fetched, 26.7). In matrix tiles it is fetched while the sums are
// multiplied (forward and backward in bfloat16, T 50: N 16, H 512 9.1 to 8.4 ms; N 64, H 256 10.5
// to 10.0, H 512 up to 2 % less). Tried without gain: fetching the weight gradients' next panel and
// its sums, and the inputs' gradients' next panel (bfloat16 up to 4 % slower, float32 within 2 %);
// by AVX-512's vectors the panels of the steps' products and of the weight gradients (within 2 %,
// AMD family 26).
//
// Cost: 4 T N G H (I + H) FLOPs, twice the forward's. Limit: as the forward's for the steps, the
// multiply-add rate for the rest.
#pragma once

#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "gate_order.h"
#include "product.h"
#include "recurrence_row_gradients.h"
#include "recurrence_schedule.h"
#include "recurrence_single_step_gradients.h"
#include "recurrent_gradients.h"
#include "weight_gradient.h"

namespace seqkernels {

// Number: what input, states and their gradients hold.
template <class Vector, RecurrentCell cell_type, class Product, class Gradient, class Number>
class RecurrenceBackwardKernel {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    using Layout = PanelLayout<Vector>;
    using Gradients = RecurrentGradients<Vector, cell_type, Number>;
    using Gate = typename Gradients::Gate;
    using Row = typename Gradients::Row;
    using RowsToCome = typename Gradients::RowsToCome;
    using Others = RowGradients<Vector, Product, Gradient, Number>;
    using Block = typename Others::Block;
    static constexpr int gates = Gradients::gates;
    static constexpr int panel_units = Product::vectors;
    // Rows whose sums are kept while all panels pass: whole tiles.
    static constexpr int64_t block_rows = 96;
    static constexpr int most_halves = 2;
    // Hidden units are shared out in so many, whole vectors on any processor.
    static constexpr int64_t share_units = 16;
    static_assert(share_units % Vector::width == 0);

 public:
    explicit RecurrenceBackwardKernel(const RecurrenceBackward<Number>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(shape_, arguments.lengths, arguments.batch_sizes),
          gradients_(arguments, schedule_),
          hidden_layout_{shape_.hidden, gates * shape_.hidden, panel_units, 1},
          order_(halves_of(shape_.hidden)),
          most_waiting_(waiting_rows_of(order_.count() * int64_t{sizeof(Gate)})),
          ring_rows_(larger(1, smaller(schedule_.row_count(), most_waiting_ + 2 * shape_.batch))) {
        for (int h = 0; h < order_.halves(); ++h) {
            halves_[h] = {{call_.weight_hh, order_, {h, h + 1}},
                          {shape_.hidden, order_.depth(h), panel_units, 1},
                          nullptr};
        }
    }

    void run(int threads) {
        const int64_t batch = shape_.batch;
        const Others others(call_, schedule_, order_, threads);
        const Scratch<Packed> hidden_weights(
            sum_of_halves([&](int h) { return Product::packed_elements(halves_[h].layout); }));
        const Scratch<Gate> ring(checked_product({ring_rows_, order_.count()}));
        const int64_t most_rows = batch + 1;
        const Scratch<Row> rows(checked_product({most_rows, threads}));
        const Scratch<const Gate*> after(checked_product({most_rows, most_halves, threads}));
        const Scratch<T> scales(checked_product({most_rows, most_halves, threads}));
        const Scratch<Vector> sums(checked_product(
            {rows_of_all_sums(threads), order_.halves(), hidden_layout_.panels(), panel_units}));
        const Scratch<T> initial_cells(gradients_.initial_cell_elements());
        const Scratch<T> grad_cells(gradients_.grad_cell_elements());
        gradients_.place_cell_states(initial_cells.data(), grad_cells.data());
        const int64_t step_copies = sum_of_halves(
            [&](int h) { return Product::left_elements(most_rows, halves_[h].layout.depth); });
        const int64_t most_copies = larger(step_copies, others.left_elements());
        const Scratch<Left> copies(checked_product({most_copies, threads}));
        const int64_t panel_elements =
            larger(others.pack_scratch_elements(), Product::pack_scratch_elements(hidden_layout_));
        const Scratch<T> panel_scratch(checked_product({panel_elements, threads}));
        ring_ = ring.data();
        place_halves(hidden_weights.data());

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            [[maybe_unused]] const typename Product::Session session{};
            const Grid grid =
                recurrence_grid<Product>(shape_, shares_of(shape_.hidden), hidden_layout_, granted);
            const int64_t sum_rows = rows_of_sums(grid.row_parts);
            const int64_t all_sums =
                order_.halves() * hidden_layout_.panels() * sum_rows * panel_units;
            const Samples mine{
                grid,
                thread,
                rows.data() + thread * most_rows,
                after.data() + thread * most_halves * most_rows,
                copies.data() + thread * most_copies,
                scales.data() + thread * most_halves * most_rows,
                sums.data() + grid.row_part(thread) * (grid.column_parts > 1 ? 2 : 1) * all_sums,
                all_sums,
                sum_rows};
            T* const panel = panel_scratch.data() + thread * panel_elements;
            pack_hidden_weights(mine, panel);
            others.pack(panel, thread, granted);
            gradients_.start(thread, granted);
            barrier.wait(granted);
            const auto add_others_of = [&](const Block& block) {
                if (!others.are_wanted()) return;
                const auto row = [&](int64_t k) { return ring_row(block.first, k); };
                others.add(block, row, mine.copies, thread, granted, barrier);
                barrier.wait(granted);
            };
            Progress now{};
            for (int64_t step = schedule_.longest() - 1; step >= 0; --step) {
                run_step(step, mine, now, [&] { barrier.wait(granted); });
                if (step == 0 || now.waiting_rows() < most_waiting_) continue;
                barrier.wait(granted);
                while (now.waiting_rows() >= Others::block_rows) {
                    add_others_of(take_block(now, Others::block_rows));
                }
            }
            if (call_.grad_initial_hidden != nullptr) {
                run_step(-1, mine, now, [&] { barrier.wait(granted); });
            }
            barrier.wait(granted);
            if (thread == 0) pass_through();
            // Of no rows there is one block.
            do {
                add_others_of(take_block(now, smaller(Others::block_rows, now.waiting_rows())));
            } while (now.waiting_rows() > 0);
            others.clear_beyond(part_of(batch, 1, thread, granted));
            gradients_.finish(thread, granted);
            if (thread == 0) others.store_bias_gradient();
        });
    }

 private:
    // The gates of half of the hidden units, and what their gradients are multiplied with.
    struct Half {
        GateWeights weights;
        Layout layout;
        Packed* packed;
    };

    static int64_t shares_of(int64_t hidden) { return divide_rounding_up(hidden, share_units); }
    static GateOrder halves_of(int64_t hidden) {
        return {
            hidden, gates,
            shares_of(hidden) > 1 ? part_of(shares_of(hidden), 1, 0, 2).end * share_units : hidden};
    }
    template <class Elements>
    int64_t sum_of_halves(Elements&& elements) const {
        int64_t sum = 0;
        for (int h = 0; h < order_.halves(); ++h) sum += elements(h);
        return sum;
    }
    void place_halves(Packed* packed) {
        for (int h = 0; h < order_.halves(); ++h) {
            halves_[h].packed = packed;
            packed += Product::packed_elements(halves_[h].layout);
        }
    }

    // Whole blocks of rows of which the gates' gradients are still in L2, or not far from it.
    static int64_t waiting_rows_of(int64_t row_bytes) {
        constexpr int64_t waiting_bytes = 4 << 20;
        constexpr int64_t rows = Others::block_rows;
        return larger(1, waiting_bytes / larger(1, row_bytes) / rows) * rows;
    }

    // Rows whose sums threads with the same samples keep, whole tiles.
    int64_t rows_of_sums(int64_t row_parts) const {
        const int64_t rows = divide_rounding_up(shape_.batch, row_parts);
        return smaller(block_rows, divide_rounding_up(rows, sum_unit) * sum_unit);
    }
    // Those of all of them, however samples are shared out; twice where two threads or more have
    // the same.
    int64_t rows_of_all_sums(int threads) const {
        return smaller(checked_product({block_rows, threads}),
                       checked_product({2, shape_.batch + sum_unit * threads}));
    }
    static constexpr int64_t sum_unit = 16;

    // What a thread needs of its samples. The sums it shares with those that have the same.
    struct Samples {
        Grid grid;
        int thread;
        Row* rows;
        const Gate** after;  // of each half their gates' gradients of the step after
        Left* copies;        // of those, as they are multiplied, if that is otherwise
        T* scales;
        Vector* sums;  // [turn][half][panel][row][unit]
        int64_t all_sums, sum_rows;
    };
    Vector* sums_of(const Samples& mine, bool is_second_turn, int h, int64_t panel) const {
        return mine.sums + (is_second_turn ? mine.all_sums : 0) +
               (h * hidden_layout_.panels() + panel) * mine.sum_rows * panel_units;
    }
    int64_t sample_of(const Samples& mine, int64_t i) const {
        return schedule_.sample(position_of(mine, i));
    }
    static int64_t position_of(const Samples& mine, int64_t i) {
        return mine.grid.row_part(mine.thread) + i * mine.grid.row_parts;
    }
    // A thread's products, [half][panel]: of two threads with the same samples one has either half.
    Range items(const Samples& mine) const {
        return mine.grid.columns(order_.halves() * hidden_layout_.panels(), mine.thread);
    }

    // How far the steps have come, the same for all threads. Rows of gates' gradients are counted
    // as they are made, step after step in the schedule's order of samples; each has its place in a
    // ring of rows.
    struct Progress {
        int64_t step_after;  // the first row of the step after
        int64_t made;        // rows of all steps up to now
        int64_t multiplied;  // rows of which the other gradients are made
        bool is_second_turn;
        // The step, and the position in it, of the first row that is not multiplied.
        int64_t waiting_step, waiting_position;

        int64_t waiting_rows() const { return made - multiplied; }
    };
    // The place of row first + i, i less than ring_rows_. Threads that do not wait for each other
    // at every step do so when there are most_waiting_ rows: before, one may have come a step
    // farther, while another still reads those of the step before.
    Gate* ring_row(int64_t first, int64_t i) const {
        const int64_t place = first % ring_rows_ + i;
        return ring_ + (place < ring_rows_ ? place : place - ring_rows_) * order_.count();
    }

    // Each thread packs what it will multiply by, shared with those that have other samples.
    void pack_hidden_weights(const Samples& mine, T* scratch) const {
        const Range all = items(mine);
        const Range part =
            part_of(all.end - all.begin, 1, mine.grid.row_part(mine.thread), mine.grid.row_parts);
        for (int h = 0; h < order_.halves(); ++h) {
            const int64_t first = h * hidden_layout_.panels();
            const Range panels{larger(all.begin + part.begin - first, 0),
                               smaller(all.begin + part.end - first, hidden_layout_.panels())};
            pack_gate_weights<Product>(halves_[h].packed, halves_[h].layout, panels,
                                       halves_[h].weights, scratch);
        }
    }

    // The gates' gradients of a step, or, of -1, the initial states'. wait() returns when all
    // threads have called it.
    template <class Wait>
    void run_step(int64_t step, const Samples& mine, Progress& now, Wait&& wait) const {
        const Grid& grid = mine.grid;
        // Samples whose last step this is have no later step's gradient to add: they come after the
        // rest.
        const int64_t continuing = grid.dealt(schedule_.active(step + 1), mine.thread);
        const int64_t active = schedule_.active(larger(step, 0));
        const int64_t count = grid.dealt(active, mine.thread);
        for (int64_t i = 0; step >= 0 && i < count; ++i) {
            mine.rows[i] = gradients_.row(sample_of(mine, i), step);
        }
        const Range products = items(mine);
        const int64_t panels = hidden_layout_.panels();
        typename Product::template Rows<Gate> after[most_halves];
        Left* copies = mine.copies;
        for (int h = 0; h < order_.halves(); ++h) {
            const Gate** given = mine.after + h * (shape_.batch + 1);
            for (int64_t i = 0; i < continuing; ++i) {
                given[i] = ring_row(now.step_after, position_of(mine, i)) + order_.place(h);
            }
            const bool is_mine = products.begin < (h + 1) * panels && products.end > h * panels;
            const int64_t depth = halves_[h].layout.depth;
            after[h] = Product::prepare(given, Range{0, is_mine ? continuing : 0}, depth, copies,
                                        mine.scales + h * (shape_.batch + 1));
            copies += Product::left_elements(shape_.batch + 1, depth);
        }
        const bool hands_over = grid.column_parts > 1 && schedule_.active(step + 1) > 0;
        // All threads take as many turns.
        const int64_t most = divide_rounding_up(active, grid.row_parts);
        for (int64_t first = 0; first < most; first += block_rows) {
            const int64_t together = larger(0, smaller(block_rows, count - first));
            const int64_t with_product = larger(0, smaller(together, continuing - first));
            for (int64_t position = products.begin; position < products.end; ++position) {
                // There and back again: the weights that the last step read last are still in L2.
                const int64_t item =
                    step % 2 == 0 ? position : products.begin + products.end - 1 - position;
                const int h = item < panels ? 0 : 1;
                const int64_t panel = item - h * panels;
                const Range rows =
                    part_of(step < 0 ? 0 : together, 1, static_cast<int>(position - products.begin),
                            static_cast<int>(products.end - products.begin));
                multiply(sums_of(mine, now.is_second_turn, h, panel), after[h].from(first),
                         with_product, panel, halves_[h],
                         RowsToCome(gradients_, mine.rows + first, rows, units_of(mine)));
            }
            if (hands_over) wait();
            if (step < 0) {
                initial_gradients(mine, now, first, with_product);
            } else {
                step_back(mine, now, first, together, with_product);
            }
            // Sums of the next turn go elsewhere: others may still read these.
            if (hands_over) now.is_second_turn = !now.is_second_turn;
        }
        if (step < 0) return;
        now.step_after = now.made;
        now.made += active;
        // Threads that share a half wait for its gates' gradients.
        if (grid.column_parts > order_.halves()) wait();
    }

    // sums = the product, for one panel, of `count` rows of gates' gradients with a half's weights.
    void multiply(Vector* sums, const typename Product::template Rows<Gate>& after, int64_t count,
                  int64_t panel, const Half& half, RowsToCome&& rows_to_come) const {
        const int64_t units = half.layout.units_of(panel);
        if (Product::accumulates) {
            for (int64_t i = 0; i < count * units; ++i) sums[i] = Vector::broadcast(0);
        }
        Product::for_each_block(count, [&](int64_t first, int rows) {
            Product::multiply_block(sums + first * units, after.from(first), rows, half.layout,
                                    panel, half.packed, half.weights, rows_to_come);
        });
    }

    // A thread's hidden units.
    Range units_of(const Samples& mine) const {
        const Range shares = mine.grid.columns(shares_of(shape_.hidden), mine.thread);
        const int64_t begin = smaller(shares.begin * share_units, shape_.hidden);
        return {begin, smaller(shares.end * share_units, shape_.hidden)};
    }

    // Calls function(unit, sum) for the hidden units of a thread; sum(): the product of row m.
    template <class Function>
    void for_each_unit(const Samples& mine, bool is_second_turn, int64_t m,
                       Function&& function) const {
        constexpr int64_t panel_columns = panel_units * Vector::width;
        const Range units = units_of(mine);
        for (int64_t unit = units.begin; unit < units.end; unit += Vector::width) {
            const int64_t panel = unit / panel_columns;
            const int64_t i =
                m * hidden_layout_.units_of(panel) + unit % panel_columns / Vector::width;
            function(unit, [&, panel, i] {
                const Vector first = sums_of(mine, is_second_turn, 0, panel)[i];
                return order_.halves() == 1 ? first
                                            : first + sums_of(mine, is_second_turn, 1, panel)[i];
            });
        }
    }

    // Row by row, so that what lies side by side is read in one go: most of it comes from memory.
    void step_back(const Samples& mine, const Progress& now, int64_t first, int64_t count,
                   int64_t with_product) const {
        for (int64_t m = 0; m < count; ++m) {
            const Row& row = mine.rows[first + m];
            Gate* const target = ring_row(now.made, position_of(mine, first + m));
            for_each_unit(mine, now.is_second_turn, m, [&](int64_t unit, auto&& sum) {
                const int h = unit < order_.first_half ? 0 : 1;
                const Range units = order_.units(h);
                Vector grad_hidden = gradients_.of_state(row, unit);
                if (m < with_product) grad_hidden = sum() + grad_hidden;
                gradients_.step_back(row, unit, grad_hidden,
                                     target + order_.place(h) + unit - units.begin, units.count());
            });
        }
    }

    void initial_gradients(const Samples& mine, const Progress& now, int64_t first,
                           int64_t count) const {
        for (int64_t m = 0; m < count; ++m) {
            Number* target = call_.grad_initial_hidden + sample_of(mine, first + m) * shape_.hidden;
            for_each_unit(mine, now.is_second_turn, m, [&](int64_t unit, auto&& sum) {
                store_up_to(sum(), target + unit, shape_.hidden - unit);
            });
        }
    }

    // Samples that ran at all are the first of the order.
    void pass_through() const {
        for (int64_t i = schedule_.active(0); i < shape_.batch; ++i) {
            gradients_.pass_through(schedule_.sample(i));
        }
    }

    // The next rows that wait, `count` of them.
    Block take_block(Progress& now, int64_t count) const {
        if (now.multiplied == 0) now.waiting_step = schedule_.longest() - 1;
        const Block block{
            {count, now.multiplied == 0, now.multiplied + count == schedule_.row_count()},
            now.multiplied,
            now.waiting_step,
            now.waiting_position};
        now.multiplied += count;
        now.waiting_position += count;
        while (now.waiting_step > 0 && now.waiting_position >= schedule_.active(now.waiting_step)) {
            now.waiting_position -= schedule_.active(now.waiting_step--);
        }
        return block;
    }

    const RecurrenceBackward<Number>& call_;
    const RecurrenceShape& shape_;
    const Schedule schedule_;
    Gradients gradients_;
    const Layout hidden_layout_;
    const GateOrder order_;
    const int64_t most_waiting_;  // rows of gates' gradients, but for those of a step
    const int64_t ring_rows_;
    Half halves_[most_halves] = {};
    Gate* ring_ = nullptr;
};

template <class Vector, class Product, class Gradient, class Number>
void recurrence_backward_by(const RecurrenceBackward<Number>& arguments, int threads) {
    with_cell(arguments.shape.cell, [&](auto cell) {
        if constexpr (!Product::in_tiles) {
            using SingleStep = RecurrenceSingleStepGradients<Vector, cell()>;
            if (SingleStep::pays_for(arguments.shape)) return SingleStep(arguments).run(threads);
        }
        RecurrenceBackwardKernel<Vector, cell(), Product, Gradient, Number>(arguments).run(threads);
    });
}

template <class Vector, class Product = VectorProduct<Vector>,
          class Gradient = WeightGradient<Vector>>
void recurrence_backward(const RecurrenceBackward<typename Vector::Element>& arguments,
                         int threads) {
    if constexpr (Product::in_tiles) {
        if (!Product::pays_for(arguments.shape)) {
            return recurrence_backward<Vector>(arguments, threads);
        }
    }
    recurrence_backward_by<Vector, Product, Gradient>(arguments, threads);
}

}  // namespace seqkernels
