// Gradients of one layer and direction of an LSTM or plain RNN: backpropagation through time.
//
// With a_t the gates before their activations (recurrence_forward.h), back from each sample's last
// step:
//   dh_t = grad_output_t + W_hh^T da_{t+1}              (grad_final_hidden at the last step)
//   LSTM: dc_t += dh_t o (1 - tanh(c_t)^2)              (grad_final_cell at the last step)
//         da^i = dc g i (1 - i),  da^f = dc c_{t-1} f (1 - f),  da^g = dc i (1 - g^2),
//         da^o = dh tanh(c) o (1 - o),  dc_{t-1} = dc f
//   RNN:  da = dh (1 - h^2), or dh where h > 0
// and then over all steps at once
//   grad_input = W_ih^T da,  grad_weight_ih = da x^T,  grad_weight_hh = da h_{t-1}^T,  grad_bias =
//   sum da
//
// Shapes and ownership: RecurrenceBackward in kernels.h. No output aliases an input, and none
// another; but da may take the place of the gates, read before they are overwritten. Scratch, owned
// by the call: both weights packed the other way round, G H (I + H); that of recurrent_gradients.h;
// the schedule, T N + T + N integers; the gradients of gates of one step, N G H; for each thread
// pointers for the rows of one step; sums of block_rows rows, twice for each half; blocks of the
// weight gradients' operands; and in matrix tiles, for each thread, a panel of weights and the
// gradients of gates of some rows (row_product.h) as they are multiplied.
//
// The steps' products W_hh^T da are added up in two halves, those of the gates of either half of
// the hidden units, so that two threads with the same samples multiply what they have made
// themselves: the sums that they hand each other are N H numbers where all of da would be 4 N H (in
// three planes as many bytes again and half of it). Halves are cut by H alone, so that the order of
// the sums does not depend on the threads.
//
// Of a step first all sums are multiplied, then the gradients of gates computed row by row: what
// they need comes from memory, whose reads the processor runs ahead of where they follow each other
// (family 6, model 167, bfloat16, N 64, T 50, H 512: the backward 26.7 to 23.4 ms; panel by panel
// with the next panel's lines fetched, 26.7).
//
// Cost: 4 T N G H (I + H) FLOPs, twice the forward's. Limit: as the forward's for the steps, the
// multiply-add rate for the rest.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "gate_weights.h"
#include "product.h"
#include "recurrence_schedule.h"
#include "recurrent_gradients.h"
#include "row_product.h"
#include "weight_gradient.h"

namespace seqkernels {

// Number: what input, states and their gradients hold.
template <class Vector, RecurrentCell cell_type, class Product, class Gradient, class Number>
class RecurrenceBackwardKernel {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    using Layout = PanelLayout<Vector>;
    using Operand = typename Gradient::template Operand<Number>;
    using Gradients = RecurrentGradients<Vector, cell_type, Number>;
    using Gate = typename Gradients::Gate;
    using Row = typename Gradients::Row;
    static constexpr int gates = Gradients::gates;
    // The biases' gradients are then summed up in a wider type than they are given in.
    static constexpr bool is_narrow = !std::is_same_v<Number, T>;
    static constexpr int tile_rows = Product::rows;
    static constexpr int panel_units = Product::vectors;
    // Rows whose sums are kept while all panels pass: whole tiles.
    static constexpr int64_t block_rows = 96;
    static constexpr int most_halves = 2;

 public:
    explicit RecurrenceBackwardKernel(const RecurrenceBackward<Number>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(shape_, arguments.lengths),
          gradients_(arguments, schedule_),
          input_layout_{shape_.inputs, gates * shape_.hidden, panel_units, 1},
          hidden_layout_{shape_.hidden, gates * shape_.hidden, panel_units, 1},
          half_count_(hidden_layout_.panels() > 1 ? 2 : 1) {
        for (int h = 0; h < half_count_; ++h) halves_[h] = half(h);
    }

    void run(int threads) {
        const bool needs_input = call_.grad_input != nullptr;
        const int64_t batch = shape_.batch, depth = gates * shape_.hidden;
        const Scratch<Packed> input_weights(needs_input ? Product::packed_elements(input_layout_)
                                                        : 0);
        const Scratch<Packed> hidden_weights(packed_elements());
        const int64_t most_rows = batch + 1;
        const Scratch<Row> rows(checked_product({most_rows, threads}));
        const Scratch<const Gate*> after(checked_product({most_rows, most_halves, threads}));
        const Scratch<T> scales(checked_product({most_rows, most_halves, threads}));
        const Scratch<Gate> step_gates(checked_product({batch + threads, depth}));
        const Scratch<Vector> sums(checked_product(
            {rows_of_all_sums(threads), half_count_, hidden_layout_.panels(), panel_units}));
        const Scratch<Gate> grad_gates(gradients_.gate_elements());
        const Scratch<T> initial_cells(gradients_.cell_elements());
        const Scratch<T> grad_cells(gradients_.cell_elements());
        gradients_.place(grad_gates.data(), initial_cells.data(), grad_cells.data());
        const int64_t most_copies = larger(
            step_copies(most_rows), Product::left_elements(rows_together<Product>(depth), depth));
        const Scratch<Left> copies(checked_product({most_copies, threads}));
        const int64_t panel_elements = larger(Product::pack_scratch_elements(input_layout_),
                                              Product::pack_scratch_elements(hidden_layout_));
        const Scratch<T> panel_scratch(checked_product({panel_elements, threads}));
        const bool needs_weights =
            call_.grad_weight_ih != nullptr || call_.grad_weight_hh != nullptr;
        const Gradient gradient(depth, needs_weights, threads);
        const int64_t row_count = schedule_.row_count();
        const Operand inputs(shape_.inputs, call_.grad_weight_ih, depth, row_count);
        const Operand states(shape_.hidden, call_.grad_weight_hh, depth, row_count);
        const Scratch<T> bias_sums(is_narrow && call_.grad_bias != nullptr ? depth : 0);
        T* const grad_bias = place_bias(bias_sums.data());
        input_weights_ = input_weights.data();
        place_halves(hidden_weights.data());

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            [[maybe_unused]] const typename Product::Session session{};
            const Grid grid = recurrence_grid(
                batch, tile_rows, hidden_layout_.panels(),
                hidden_layout_.elements() * static_cast<int64_t>(sizeof(T)), granted);
            const int64_t group = grid.row_part(thread);
            const int64_t group_rows = divide_rounding_up(batch, grid.row_parts);
            const int64_t sum_rows = rows_of_sums(grid.row_parts);
            Steps mine{};
            mine.grid = grid;
            mine.thread = thread;
            mine.rows = rows.data() + thread * most_rows;
            mine.step_gates = step_gates.data() + group * group_rows * depth;
            mine.group_rows = group_rows;
            mine.after = after.data() + thread * most_halves * most_rows;
            mine.copies = copies.data() + thread * most_copies;
            mine.scales = scales.data() + thread * most_halves * most_rows;
            mine.most_rows = most_rows;
            mine.sum_rows = sum_rows;
            mine.all_sums = half_count_ * hidden_layout_.panels() * sum_rows * panel_units;
            mine.sums = sums.data() + group * (grid.column_parts > 1 ? 2 : 1) * mine.all_sums;
            prepare(mine, panel_scratch.data() + thread * panel_elements, granted);
            barrier.wait(granted);
            for (int64_t step = schedule_.longest() - 1; step >= -1; --step) {
                run_step(step, mine, [&] { barrier.wait(granted); });
            }
            barrier.wait(granted);
            if (thread == 0) pass_through();
            Left* const own_copies = copies.data() + thread * most_copies;
            if (needs_input) input_gradient(thread, granted, own_copies);
            if (needs_weights || grad_bias != nullptr) {
                weight_gradients(gradient, grad_bias, inputs, states, thread, granted, barrier);
            }
            gradients_.finish(thread, granted);
            barrier.wait(granted);
            narrow_bias_gradient(grad_bias, thread, granted);
        });
    }

 private:
    // The gates of some panels of hidden units, whose gradients are multiplied together.
    struct Half {
        Range panels;
        GateWeights weights;
        Layout layout;
        Packed* packed;
    };

    Half half(int h) const {
        const Range panels = part_of(hidden_layout_.panels(), 1, h, half_count_);
        const int64_t first = hidden_layout_.first_column(panels.begin);
        const int64_t end = smaller(hidden_layout_.first_column(panels.end), shape_.hidden);
        const GateWeights weights{call_.weight_hh, shape_.hidden, gates, first, end - first};
        return {panels, weights, {shape_.hidden, weights.depth(), panel_units, 1}, nullptr};
    }
    int half_of(int64_t panel) const { return halves_[0].panels.has(panel) ? 0 : 1; }

    int64_t packed_elements() const {
        int64_t elements = 0;
        for (int h = 0; h < half_count_; ++h) {
            elements += Product::packed_elements(halves_[h].layout);
        }
        return elements;
    }
    void place_halves(Packed* packed) {
        for (int h = 0; h < half_count_; ++h) {
            halves_[h].packed = packed;
            packed += Product::packed_elements(halves_[h].layout);
        }
    }
    int64_t step_copies(int64_t rows) const {
        int64_t elements = 0;
        for (int h = 0; h < half_count_; ++h) {
            elements += Product::left_elements(rows, halves_[h].layout.depth);
        }
        return elements;
    }

    // Rows whose sums threads with the same samples keep, whole tiles.
    int64_t rows_of_sums(int64_t row_parts) const {
        constexpr int64_t unit = 16;
        return smaller(
            block_rows,
            divide_rounding_up(divide_rounding_up(shape_.batch, row_parts), unit) * unit);
    }
    // Those of all of them, where two threads or more have the same samples twice, however many
    // parts they are.
    int64_t rows_of_all_sums(int threads) const {
        return smaller(checked_product({block_rows, threads}),
                       checked_product({2, shape_.batch + 16 * threads}));
    }

    // What a thread needs for the steps: its place, its samples' rows, and of one step the gates'
    // gradients of all units, half by half, and the sums, which those with the same samples share.
    struct Steps {
        Grid grid;
        int thread;
        Row* rows;
        Gate* step_gates;
        int64_t group_rows;
        const Gate** after;  // pointers to those
        Left* copies;        // as they are multiplied, if that is otherwise
        T* scales;
        int64_t most_rows;
        Vector* sums;  // [turn][half][panel][row][unit]
        int64_t all_sums, sum_rows;
        bool is_second_turn;
    };
    Gate* gates_of(const Steps& mine, int h, int64_t row) const {
        return mine.step_gates + mine.group_rows * gates * halves_[h].weights.first +
               row * halves_[h].weights.depth();
    }
    Vector* sums_of(const Steps& mine, int h, int64_t panel) const {
        return mine.sums + (mine.is_second_turn ? mine.all_sums : 0) +
               (h * hidden_layout_.panels() + panel) * mine.sum_rows * panel_units;
    }
    // A thread's products: [half][panel], side by side for threads with the same samples.
    Range items(const Steps& mine) const {
        return mine.grid.columns(half_count_ * hidden_layout_.panels(), mine.thread);
    }

    void prepare(const Steps& mine, T* scratch, int threads) const {
        // Each packs what it will multiply by, shared with those that have other samples.
        const Range all = items(mine);
        const Range part = part_of(all.end - all.begin, 1, mine.grid.row_part(mine.thread),
                                   static_cast<int>(mine.grid.row_parts));
        for (int h = 0; h < half_count_; ++h) {
            const int64_t first = h * hidden_layout_.panels();
            const Range panels{larger(all.begin + part.begin - first, 0),
                               smaller(all.begin + part.end - first, hidden_layout_.panels())};
            Product::pack(halves_[h].packed, halves_[h].layout, panels, scratch,
                          [&](T* target, int64_t panel) {
                              pack_panel(target, halves_[h].layout, panel, halves_[h].weights);
                          });
            for (int64_t i = 0; i < mine.group_rows; ++i) {
                mine.after[h * mine.most_rows + i] = gates_of(mine, h, i);
            }
        }
        if (call_.grad_input != nullptr) {
            Product::pack(input_weights_, input_layout_,
                          part_of(input_layout_.panels(), 1, mine.thread, threads), scratch,
                          [&](T* target, int64_t panel) {
                              pack_panel(target, input_layout_, panel, input_layout_.depth,
                                         call_.weight_ih.transposed());
                          });
        }
        gradients_.start(mine.thread, threads);
    }

    // Where the biases' gradient is summed up: in its place, or where there is room for it in a
    // wider type; null where it is not wanted.
    T* place_bias(T* widened) const {
        if constexpr (is_narrow) {
            return call_.grad_bias == nullptr ? nullptr : widened;
        } else {
            return call_.grad_bias;
        }
    }
    void narrow_bias_gradient(const T* sums, int thread, int threads) const {
        if (!is_narrow || sums == nullptr) return;
        const Range mine = part_of(gates * shape_.hidden, Vector::width, thread, threads);
        convert_numbers<Vector>(sums + mine.begin, call_.grad_bias + mine.begin,
                                mine.end - mine.begin);
    }

    // The gates' gradients of a step, or, of -1, the initial states'. wait() returns when all
    // threads have called it.
    template <class Wait>
    void run_step(int64_t step, Steps& mine, Wait&& wait) const {
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
        typename Product::template Rows<Gate> after[most_halves];
        Left* copies = mine.copies;
        for (int h = 0; h < half_count_; ++h) {
            const int64_t panels = hidden_layout_.panels(), depth = halves_[h].layout.depth;
            const bool is_mine = products.begin < (h + 1) * panels && products.end > h * panels;
            after[h] = Product::prepare(mine.after + h * mine.most_rows,
                                        Range{0, is_mine ? continuing : 0}, depth, copies,
                                        mine.scales + h * mine.most_rows);
            copies += Product::left_elements(mine.most_rows, depth);
        }
        // All threads take as many turns.
        const int64_t most = divide_rounding_up(active, grid.row_parts);
        for (int64_t first = 0; first < most; first += block_rows) {
            const int64_t together = larger(0, smaller(block_rows, count - first));
            const int64_t with_product = larger(0, smaller(together, continuing - first));
            for (int64_t position = products.begin; position < products.end; ++position) {
                // There and back again: the weights that the last step read last are still in L2.
                const int64_t item =
                    step % 2 == 0 ? position : products.begin + products.end - 1 - position;
                const int h = item < hidden_layout_.panels() ? 0 : 1;
                const int64_t panel = item - h * hidden_layout_.panels();
                multiply(sums_of(mine, h, panel), after[h].from(first), with_product, panel,
                         halves_[h]);
            }
            const bool has_sums = schedule_.active(step + 1) > 0;
            if (has_sums && grid.column_parts > 1) wait();
            if (step < 0) {
                initial_gradients(mine, first, with_product);
            } else {
                step_back(mine, first, together, with_product);
            }
            // Sums of the next turn go elsewhere: others may still read these.
            if (has_sums && grid.column_parts > 1) mine.is_second_turn = !mine.is_second_turn;
        }
        // Threads that share a half wait for its gates' gradients.
        if (grid.column_parts > half_count_) wait();
    }

    int64_t sample_of(const Steps& mine, int64_t i) const {
        return schedule_.sample(mine.grid.row_part(mine.thread) + i * mine.grid.row_parts);
    }

    // sums = the product, for one panel, of `count` rows of gates' gradients with a half's weights.
    void multiply(Vector* sums, const typename Product::template Rows<Gate>& after, int64_t count,
                  int64_t panel, const Half& half) const {
        const int64_t units = half.layout.units_of(panel);
        if (Product::accumulates) {
            for (int64_t i = 0; i < count * units; ++i) sums[i] = Vector::broadcast(0);
        }
        Product::for_each_block(count, [&](int64_t first, int rows) {
            Product::multiply_block(sums + first * units, after.from(first), rows, half.layout,
                                    panel, half.packed, half.weights);
        });
    }

    // Calls function(panel, unit, sum) for the hidden units of a thread; sum(m): the product of row
    // m.
    template <class Function>
    void for_each_unit(const Steps& mine, Function&& function) const {
        const Range panels = mine.grid.columns(hidden_layout_.panels(), mine.thread);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const int64_t units = hidden_layout_.units_of(panel);
            const Vector* first = sums_of(mine, 0, panel);
            const Vector* second = half_count_ > 1 ? sums_of(mine, 1, panel) : nullptr;
            for (int64_t u = 0; u < units; ++u) {
                function(panel, hidden_layout_.first_column(panel) + u * Vector::width,
                         [=](int64_t m) {
                             const int64_t i = m * units + u;
                             return second == nullptr ? first[i] : first[i] + second[i];
                         });
            }
        }
    }

    // Row by row, so that what lies side by side is read in one go: most of it comes from memory.
    void step_back(const Steps& mine, int64_t first, int64_t count, int64_t with_product) const {
        for (int64_t m = 0; m < count; ++m) {
            const Row& row = mine.rows[first + m];
            for_each_unit(mine, [&](int64_t panel, int64_t unit, auto&& sum) {
                const int h = half_of(panel);
                const GateWeights& weights = halves_[h].weights;
                const Vector grad_hidden = gradients_.of_state(row, unit);
                gradients_.step_back(
                    row, unit, m < with_product ? sum(m) + grad_hidden : grad_hidden,
                    gates_of(mine, h, first + m) + unit - weights.first, weights.count);
            });
        }
    }

    void initial_gradients(const Steps& mine, int64_t first, int64_t count) const {
        for (int64_t m = 0; m < count; ++m) {
            Number* target = call_.grad_initial_hidden + sample_of(mine, first + m) * shape_.hidden;
            for_each_unit(mine, [&](int64_t, int64_t unit, auto&& sum) {
                store_up_to(sum(m), target + unit, shape_.hidden - unit);
            });
        }
    }

    // Samples that ran at all are the first of the order.
    void pass_through() const {
        for (int64_t i = schedule_.active(0); i < shape_.batch; ++i) {
            gradients_.pass_through(schedule_.sample(i));
        }
    }

    void input_gradient(int thread, int threads, Left* copies) const {
        const int64_t rows = schedule_.row_count();
        const int64_t panels = input_layout_.panels();
        const Grid grid = product_grid(rows, tile_rows, panels, threads);
        multiply_rows<Vector, Product>(
            input_layout_, input_weights_, call_.weight_ih.transposed(),
            grid.columns(panels, thread), grid.rows(rows, tile_rows, thread), nullptr,
            [&](int64_t index) { return gradients_.gates_of(schedule_.row_at(index)); },
            [&](int64_t index) {
                return call_.grad_input + schedule_.row_at(index) * shape_.inputs;
            },
            copies);
        const Range samples = part_of(shape_.batch, 1, thread, threads);
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            for (int64_t time = schedule_.length(n); time < shape_.steps; ++time) {
                std::memset(call_.grad_input + (time * shape_.batch + n) * shape_.inputs, 0,
                            static_cast<std::size_t>(shape_.inputs) * sizeof(Number));
            }
        }
    }

    void weight_gradients(const Gradient& gradient, T* grad_bias, const Operand& inputs,
                          const Operand& states, int thread, int threads, Barrier& barrier) const {
        const int64_t hidden = shape_.hidden;
        gradient.run(
            schedule_.row_count(),
            [&](int64_t index) { return gradients_.gates_of(schedule_.row_at(index)); }, grad_bias,
            inputs,
            [&](int64_t index) {
                const int64_t row = schedule_.row_at(index);
                return call_.input.data + row / shape_.batch * call_.input.stride_step +
                       row % shape_.batch * call_.input.stride_batch;
            },
            states,
            [&](int64_t index) {
                const int64_t row = schedule_.row_at(index);
                const int64_t before = schedule_.row_before(row);
                return before < 0 ? call_.initial_hidden + row % shape_.batch * hidden
                                  : call_.output + before * hidden;
            },
            thread, threads, barrier);
    }

    const RecurrenceBackward<Number>& call_;
    const RecurrenceShape& shape_;
    const Schedule schedule_;
    Gradients gradients_;
    const Layout input_layout_;
    const Layout hidden_layout_;
    const int half_count_;
    Half halves_[most_halves] = {};
    Packed* input_weights_ = nullptr;
};

template <class Vector, class Product, class Gradient, class Number>
void recurrence_backward_by(const RecurrenceBackward<Number>& arguments, int threads) {
    with_cell(arguments.shape.cell, [&](auto cell) {
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
