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
// by the call: both weights packed the other way round, G H (I + H); da, T N G H, where it is given
// no room; the schedule, T N + T + N integers; for each thread pointers for the rows of one step
// and sums of block_rows rows; blocks of the weight gradients' operands; of numbers narrower than
// the sums, cell states and their gradients, 2 N H; and in matrix tiles, for each thread, a panel
// of weights and the gradients of gates of some rows (row_product.h) as they are multiplied.
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
#include "product.h"
#include "recurrence_schedule.h"
#include "row_product.h"
#include "vector_math.h"
#include "weight_gradient.h"

namespace seqkernels {

// Number: what input, states and their gradients hold.
template <class Vector, RecurrentCell cell_type, class Product, class Gradient, class Number>
class RecurrenceBackwardKernel {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    using Operand = typename Gradient::template Operand<Number>;
    static constexpr bool is_lstm = cell_type == RecurrentCell::lstm;
    static constexpr int gates = is_lstm ? 4 : 1;
    // Running gradients of cell states are then kept in a wider type than they are given in.
    static constexpr bool is_narrow = !std::is_same_v<Number, T>;
    // Then gradients of gates too are kept as they are multiplied.
    using Gate = Number;
    static constexpr int tile_rows = Product::rows;
    static constexpr int panel_units = Product::vectors;
    // Rows whose sums are kept while all panels pass: whole tiles.
    static constexpr int64_t block_rows = 96;

 public:
    explicit RecurrenceBackwardKernel(const RecurrenceBackward<Number>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(shape_, arguments.lengths),
          input_layout_{shape_.inputs, gates * shape_.hidden, panel_units, 1},
          hidden_layout_{shape_.hidden, gates * shape_.hidden, panel_units, 1} {}

    void run(int threads) {
        const bool needs_input = call_.grad_input != nullptr;
        const Scratch<Packed> input_weights(needs_input ? Product::packed_elements(input_layout_)
                                                        : 0);
        const Scratch<Packed> hidden_weights(Product::packed_elements(hidden_layout_));
        const int64_t most_rows = shape_.batch + 1;
        const Scratch<Row> rows(checked_product({most_rows, threads}));
        const Scratch<const Gate*> after(checked_product({most_rows, threads}));
        const Scratch<T> scales(checked_product({most_rows, threads}));
        const int64_t most_sums =
            checked_product({hidden_layout_.panels(), panel_units, block_rows});
        const Scratch<Vector> sums(checked_product({most_sums, threads}));
        const int64_t depth = gates * shape_.hidden;
        const bool has_room = !is_narrow && call_.grad_gates != nullptr;
        const Scratch<Gate> grad_gates(
            has_room ? 0 : checked_product({shape_.steps, shape_.batch, depth}));
        place_gate_gradients(grad_gates.data());
        const int64_t most_copies =
            larger(Product::left_elements(most_rows, depth),
                   Product::left_elements(rows_together<Product>(depth), depth));
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
        const int64_t cells = is_lstm && is_narrow ? shape_.batch * shape_.hidden : 0;
        const Scratch<T> initial_cells(cells), grad_cells(cells);
        place_cell_states(initial_cells.data(), grad_cells.data());
        const Scratch<T> bias_sums(is_narrow && call_.grad_bias != nullptr ? depth : 0);
        T* const grad_bias = place_bias(bias_sums.data());
        input_weights_ = input_weights.data();
        hidden_weights_ = hidden_weights.data();

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            [[maybe_unused]] const typename Product::Session session{};
            prepare(panel_scratch.data() + thread * panel_elements, thread, granted);
            barrier.wait(granted);
            const Grid grid = recurrence_grid(
                shape_.batch, tile_rows, hidden_layout_.panels(),
                hidden_layout_.elements() * static_cast<int64_t>(sizeof(T)), granted);
            // Threads with the same samples make the gradients ready that they multiply together.
            const int64_t first = grid.row_part(thread) * grid.column_parts;
            const Samples mine{rows.data() + thread * most_rows, after.data() + thread * most_rows,
                               copies.data() + first * most_copies,
                               scales.data() + first * most_rows, sums.data() + thread * most_sums};
            const auto wait = [&] {
                if (grid.column_parts > 1) barrier.wait(granted);
            };
            for (int64_t step = schedule_.longest() - 1; step >= 0; --step) {
                run_step(step, grid, thread, mine, wait);
                wait();
            }
            barrier.wait(granted);
            Left* const own_copies = copies.data() + thread * most_copies;
            initial_hidden_gradient(thread, granted, own_copies);
            if (needs_input) input_gradient(thread, granted, own_copies);
            if (needs_weights || grad_bias != nullptr) {
                weight_gradients(gradient, grad_bias, inputs, states, thread, granted, barrier);
            }
            narrow_cell_gradients(thread, granted);
            barrier.wait(granted);
            narrow_bias_gradient(grad_bias, thread, granted);
        });
    }

 private:
    // Where one sample's data of one step lie.
    struct Row {
        const Gate* grad_gates_after;
        const T* gates;
        const Number* hidden;
        const T* cell;
        const T* cell_before;
        const Number* grad_hidden;
        const Number* grad_final_hidden;
        Gate* grad_gates;
        T* grad_cell;
    };

    // A thread's samples of one step, and their gates' gradients of the step after.
    struct Samples {
        Row* rows;
        const Gate** after;
        Left* copies;  // of those, as they are multiplied, if that is otherwise
        T* scales;
        Vector* sums;  // of block_rows rows, panel after panel

        Vector* sums_of(int64_t panel) const { return sums + panel * block_rows * panel_units; }
    };

    void prepare(T* scratch, int thread, int threads) const {
        pack_transposed(hidden_weights_, hidden_layout_, call_.weight_hh, scratch, thread, threads);
        if (call_.grad_input != nullptr) {
            pack_transposed(input_weights_, input_layout_, call_.weight_ih, scratch, thread,
                            threads);
        }
        if constexpr (is_lstm) {
            const Range samples = part_of(shape_.batch, 1, thread, threads);
            start_from(call_.grad_final_cell, grad_cell_, samples);
            if constexpr (is_narrow) start_from(call_.initial_cell, widened_initial_cell_, samples);
        }
    }

    // Where cell states and their running gradients lie: as they are given, or where there is room
    // for them in the type that they are kept in.
    void place_cell_states(T* initial, T* gradients) {
        if constexpr (is_narrow) {
            widened_initial_cell_ = initial;
            initial_cell_ = initial;
            grad_cell_ = gradients;
        } else {
            initial_cell_ = call_.initial_cell;
            grad_cell_ = call_.grad_initial_cell;
        }
    }
    void place_gate_gradients(Gate* room) {
        if constexpr (is_narrow) {
            grad_gates_ = room;
        } else {
            grad_gates_ = call_.grad_gates == nullptr ? room : call_.grad_gates;
        }
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

    void narrow_cell_gradients(int thread, int threads) const {
        if constexpr (is_lstm && is_narrow) {
            const Range samples = part_of(shape_.batch, 1, thread, threads);
            start_from(grad_cell_, call_.grad_initial_cell, samples);
        }
    }

    static void pack_transposed(Packed* packed, const PanelLayout<Vector>& layout,
                                const Matrix& weight, T* scratch, int thread, int threads) {
        Product::pack(packed, layout, part_of(layout.panels(), 1, thread, threads), scratch,
                      [&](T* target, int64_t panel) {
                          pack_panel(target, layout, panel, layout.depth, weight.transposed());
                      });
    }

    // target = source, or zero where there is no source.
    template <class From, class To>
    void start_from(const From* source, To* target, Range samples) const {
        const int64_t first = samples.begin * shape_.hidden;
        const int64_t count = (samples.end - samples.begin) * shape_.hidden;
        if (source == nullptr) {
            std::memset(target + first, 0, static_cast<std::size_t>(count) * sizeof(To));
        } else {
            convert_numbers<Vector>(source + first, target + first, count);
        }
    }

    Row row_of(int64_t n, int64_t step) const {
        const int64_t hidden = shape_.hidden;
        const int64_t row = schedule_.row(n, step);
        const bool is_last = step + 1 == schedule_.length(n);
        Row result{};
        result.grad_gates = grad_gates_ + row * gates * hidden;
        if (!is_last) {
            result.grad_gates_after = grad_gates_ + schedule_.row(n, step + 1) * gates * hidden;
        } else if (call_.grad_final_hidden != nullptr) {
            result.grad_final_hidden = call_.grad_final_hidden + n * hidden;
        }
        if (call_.grad_output != nullptr) result.grad_hidden = call_.grad_output + row * hidden;
        result.hidden = call_.output + row * hidden;
        if constexpr (is_lstm) {
            result.gates = call_.gates + row * gates * hidden;
            result.cell = call_.cells + row * hidden;
            result.cell_before = step == 0 ? initial_cell_ + n * hidden
                                           : call_.cells + schedule_.row(n, step - 1) * hidden;
            result.grad_cell = grad_cell_ + n * hidden;
        }
        return result;
    }

    // wait() returns when all threads with the same samples have called it.
    template <class Wait>
    void run_step(int64_t step, const Grid& grid, int thread, const Samples& mine,
                  Wait&& wait) const {
        const int64_t count = grid.dealt(schedule_.active(step), thread);
        // Samples whose last step this is have no later step's gradient to add: they come after the
        // rest.
        const int64_t continuing = grid.dealt(schedule_.active(step + 1), thread);
        for (int64_t i = 0; i < count; ++i) {
            mine.rows[i] =
                row_of(schedule_.sample(grid.row_part(thread) + i * grid.row_parts), step);
            mine.after[i] = mine.rows[i].grad_gates_after;
        }
        const Range part = part_of(continuing, Product::rows, grid.column_part(thread),
                                   static_cast<int>(grid.column_parts));
        const auto after =
            Product::prepare(mine.after, part, hidden_layout_.depth, mine.copies, mine.scales);
        if (Product::in_tiles && schedule_.active(step + 1) > 0) wait();
        for (int64_t first = 0; first < count; first += block_rows) {
            const int64_t together = smaller(block_rows, count - first);
            const int64_t with_product = larger(0, smaller(together, continuing - first));
            const Range panels = grid.columns(hidden_layout_.panels(), thread);
            for (int64_t position = panels.begin; position < panels.end; ++position) {
                // There and back again: the weights that the last step read last are still in L2.
                const int64_t panel =
                    step % 2 == 0 ? position : panels.begin + panels.end - 1 - position;
                multiply(mine.sums_of(panel - panels.begin), after.from(first), with_product,
                         panel);
            }
            // Row by row, so that what lies side by side is read in one go: most of it comes from
            // memory.
            for (int64_t m = 0; m < together; ++m) {
                for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                    const Vector* sums = mine.sums_of(panel - panels.begin);
                    const int64_t units = hidden_layout_.units_of(panel);
                    for (int64_t u = 0; u < units; ++u) {
                        const Row& row = mine.rows[first + m];
                        const int64_t unit = hidden_layout_.first_column(panel) + u * Vector::width;
                        const Vector grad_hidden = grad_hidden_of(row, unit);
                        gate_gradients(
                            row, unit,
                            m < with_product ? sums[m * units + u] + grad_hidden : grad_hidden);
                    }
                }
            }
        }
    }

    // sums = the recurrent weights' product, for one panel, with `count` rows of gates' gradients.
    void multiply(Vector* sums, const typename Product::template Rows<Gate>& after, int64_t count,
                  int64_t panel) const {
        const int64_t units = hidden_layout_.units_of(panel);
        if (Product::accumulates) {
            for (int64_t i = 0; i < count * units; ++i) sums[i] = Vector::broadcast(0);
        }
        Product::for_each_block(count, [&](int64_t first, int rows) {
            Product::multiply_block(sums + first * units, after.from(first), rows, hidden_layout_,
                                    panel, hidden_weights_, call_.weight_hh.transposed());
        });
    }

    // What a state's gradient is without that of the step after.
    Vector grad_hidden_of(const Row& row, int64_t unit) const {
        const int64_t count = shape_.hidden - unit;
        Vector sum = row.grad_hidden == nullptr ? Vector::broadcast(0)
                                                : load_up_to<Vector>(row.grad_hidden + unit, count);
        if (row.grad_final_hidden != nullptr) {
            sum = sum + load_up_to<Vector>(row.grad_final_hidden + unit, count);
        }
        return sum;
    }

    void gate_gradients(const Row& row, int64_t unit, Vector grad_hidden) const {
        const int64_t hidden = shape_.hidden;
        const int64_t count = hidden - unit;
        const Vector one = Vector::broadcast(1);
        if constexpr (is_lstm) {
            const auto gate = [&](int g) {
                return load_up_to<Vector>(row.gates + g * hidden + unit, count);
            };
            const Vector input_gate = gate(0), forget_gate = gate(1), candidate = gate(2),
                         output_gate = gate(3);
            const Vector squashed = hyperbolic_tangent(load_up_to<Vector>(row.cell + unit, count));
            const Vector grad_cell = load_up_to<Vector>(row.grad_cell + unit, count) +
                                     grad_hidden * output_gate * (one - squashed * squashed);
            const Vector before = load_up_to<Vector>(row.cell_before + unit, count);
            const auto store = [&](int g, Vector gradient) {
                store_up_to(gradient, row.grad_gates + g * hidden + unit, count);
            };
            store(0, grad_cell * candidate * (input_gate * (one - input_gate)));
            store(1, grad_cell * before * (forget_gate * (one - forget_gate)));
            store(2, grad_cell * input_gate * (one - candidate * candidate));
            store(3, grad_hidden * squashed * (output_gate * (one - output_gate)));
            store_up_to(grad_cell * forget_gate, row.grad_cell + unit, count);
        } else {
            const Vector h = load_up_to<Vector>(row.hidden + unit, count);
            const Vector zero = Vector::broadcast(0);
            const Vector gradient = cell_type == RecurrentCell::rnn_tanh
                                        ? grad_hidden * (one - h * h)
                                        : select(at_most(h, zero), zero, grad_hidden);
            store_up_to(gradient, row.grad_gates + unit, count);
        }
    }

    void initial_hidden_gradient(int thread, int threads, Left* copies) const {
        // Samples that ran at all are the first of the order; the others pass their gradient
        // through.
        const int64_t ran = schedule_.active(0);
        const int64_t hidden = shape_.hidden;
        const int64_t panels = hidden_layout_.panels();
        const Grid grid = product_grid(ran, tile_rows, panels, threads);
        multiply_rows<Vector, Product>(
            hidden_layout_, hidden_weights_, call_.weight_hh.transposed(),
            grid.columns(panels, thread), grid.rows(ran, tile_rows, thread), nullptr,
            [&](int64_t position) {
                const int64_t row = schedule_.row(schedule_.sample(position), 0);
                return grad_gates_ + row * gates * hidden;
            },
            [&](int64_t position) {
                return call_.grad_initial_hidden + schedule_.sample(position) * hidden;
            },
            copies);
        if (thread != 0) return;
        for (int64_t position = ran; position < shape_.batch; ++position) {
            const int64_t n = schedule_.sample(position);
            start_from(call_.grad_final_hidden, call_.grad_initial_hidden, {n, n + 1});
        }
    }

    void input_gradient(int thread, int threads, Left* copies) const {
        const int64_t rows = schedule_.row_count();
        const int64_t panels = input_layout_.panels();
        const Grid grid = product_grid(rows, tile_rows, panels, threads);
        multiply_rows<Vector, Product>(
            input_layout_, input_weights_, call_.weight_ih.transposed(),
            grid.columns(panels, thread), grid.rows(rows, tile_rows, thread), nullptr,
            [&](int64_t index) {
                return grad_gates_ + schedule_.row_at(index) * gates * shape_.hidden;
            },
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
            [&](int64_t index) { return grad_gates_ + schedule_.row_at(index) * gates * hidden; },
            grad_bias, inputs,
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
    const PanelLayout<Vector> input_layout_;
    const PanelLayout<Vector> hidden_layout_;
    Packed* input_weights_ = nullptr;
    Packed* hidden_weights_ = nullptr;
    const T* initial_cell_ = nullptr;
    T* widened_initial_cell_ = nullptr;
    T* grad_cell_ = nullptr;
    Gate* grad_gates_ = nullptr;
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
