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
// they lie; the inputs' part of a few steps (input_projection.h); the schedule, T N + T + N
// integers; for each thread pointers for the rows of one step; of numbers narrower than the sums,
// the running cell states, N H; and in matrix tiles for each thread a panel of weights, and the
// states of one step or the inputs of some rows as they are multiplied; in a single step copies of
// some rows of weights, where their numbers are not side by side.
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
// A single step, a cell's, multiplies both weights row by row (unpacked_rows.h). The order of its
// sums is not that of longer sequences: it differs from them by rounding.
//
// Panels of recurrent weights pass there and back again, step by step, so that what L2 holds of
// them is used twice: 10 to 22 % less time where they do not fit there (family 6, model 167, 2 MiB
// of L2: LSTM of N 1, H 512 1.44 to 1.12 ms; H 1024 10.9 to 9.8 ms; RNN of H 1760 8.0 to 6.7 ms).
// So do single steps, call by call (LSTM cell of N 1, H 512: 247 to 197 us).
//
// Where the recurrent weights come from beyond L2 a step of few rows takes what reading them takes.
// Measured (family 6, model 167, two threads, LSTM, H 2048, 25 steps; memory 30 GB/s, what of it
// the processor keeps 50): N 1 50.6 to 43.9 ms, N 2 56.3 to 49.0, N 4 68.3 to 59.5 by fetching
// ahead and transposing whole lines (product.h); of the 44 ms 7 project the inputs, 6 pack, and 30
// are steps at 50 GB/s.
//
// Gates for the backward that no cache holds until then are written past the caches: an LSTM's
// forward of N 64, T 50, H 512 from 16.1 to 12.6 ms in bfloat16, 36.6 to 33.5 in float32; 13 MB of
// them, H 256, up to 8 % slower. Quotients of exponentials by estimate and correction
// (vector_avx512.h) in place of divisions gained nothing at N 64; at N 1 they were not measured
// alone.
//
// Cost: 2 T N G H (I + H) FLOPs, and N T H evaluations of 5 (1) exponentials and divisions. Bytes:
// at each step the recurrent weights from the nearest cache that holds them. Limit: multiply-adds
// for N above some 16, the bandwidth of that cache below.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "input_projection.h"
#include "product.h"
#include "recurrence_schedule.h"
#include "unpacked_product.h"
#include "unpacked_rows.h"
#include "vector_math.h"
#include "vector_product.h"

namespace seqkernels {

// Number: what input, states and output hold.
template <class Vector, RecurrentCell cell_type, class Product, class Number>
class RecurrenceForwardKernel {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    using Projection = InputProjection<Vector, Product, Number>;
    static constexpr bool is_lstm = cell_type == RecurrentCell::lstm;
    static constexpr int gates = is_lstm ? 4 : 1;
    static constexpr int tile_rows = Product::rows;
    static constexpr int panel_units = is_lstm ? 1 : Product::vectors;
    // Rows whose sums are kept while a panel passes: whole tiles.
    static constexpr int64_t block_rows = 96;
    // Weights are then packed before they are multiplied.
    static constexpr bool always_packs = Product::in_tiles;
    // Sums and cell states are then kept in a wider type than they are given in.
    static constexpr bool is_narrow = !std::is_same_v<Number, T>;
    // A single step with fewer weights is over before other threads are awake.
    static constexpr int64_t single_thread_weights = 1 << 17;
    // In so few steps packing the recurrent weights does not pay.
    static constexpr int64_t most_steps_unpacked = 4;

 public:
    explicit RecurrenceForwardKernel(const RecurrenceForward<Number>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(shape_, arguments.lengths),
          input_layout_{shape_.hidden, shape_.inputs, panel_units, gates},
          hidden_layout_{shape_.hidden, shape_.hidden, panel_units, gates} {}

    void run(int threads) {
        if constexpr (!always_packs) {
            if (shape_.steps == 1) {
                run_single_step(threads);
                return;
            }
        }
        run_sequence(threads);
    }

 private:
    // widened: room for the cell states, if they are kept in another type than they are given in.
    void place_cell_states(T* widened) {
        if constexpr (is_narrow) {
            initial_cell_ = call_.initial_cell == nullptr ? nullptr : widened;
            running_cell_ = widened;
        } else {
            initial_cell_ = call_.initial_cell;
            running_cell_ = call_.final_cell;
        }
    }
    void widen_cell_states(T* widened, int thread, int threads) const {
        if (!is_lstm || !is_narrow || call_.initial_cell == nullptr) return;
        const Range mine = part_of(shape_.batch * shape_.hidden, Vector::width, thread, threads);
        convert_numbers<Vector>(call_.initial_cell + mine.begin, widened + mine.begin,
                                mine.end - mine.begin);
    }

    // Where one sample's data of one step lie; states before it that are null are zeros.
    struct Row {
        const Number* hidden_before;
        const T* cell_before;
        T* gates;  // or null
        Number* hidden;
        T* cell;
    };

    // A thread's samples of one step, and the states before it.
    struct Samples {
        Row* rows;
        const Number** states;
        Left* copies;  // of the states, as they are multiplied, if that is otherwise
        T* scales;
    };

    // How a step reads the recurrent weights.
    enum class Weights { packed, packed_on_the_way, as_they_lie, not_at_all };

    void run_sequence(int threads) {
        const Projection projection(input_layout_, call_.weight_ih, schedule_.row_count(),
                                    shape_.batch, threads);
        const Scratch<T> cell_states(is_lstm && is_narrow ? shape_.batch * shape_.hidden : 0);
        const bool steps_unpacked = !always_packs && schedule_.longest() <= most_steps_unpacked;
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
        hidden_weights_ = hidden_weights.data();
        place_cell_states(cell_states.data());
        streams_gates_ = call_.gates != nullptr && streams_gates();

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            const Grid grid = recurrence_grid(
                shape_.batch, tile_rows, hidden_layout_.panels(),
                hidden_layout_.elements() * static_cast<int64_t>(sizeof(T)), granted);
            // Where each thread's panels are its own, it packs them in its first step.
            const bool packs_on_the_way =
                !always_packs && grid.row_parts == 1 && shape_.batch <= block_rows;
            [[maybe_unused]] const typename Product::Session session{};
            T* panel = panel_scratch.data() + thread * panel_elements;
            if (!steps_unpacked && !packs_on_the_way) {
                pack_hidden_weights(panel, thread, granted);
            }
            projection.pack(panel, thread, granted);
            projection.set_bias(
                [&](int64_t gate, int64_t unit) {
                    return bias_at(gate * shape_.hidden + unit, shape_.hidden - unit);
                },
                thread, granted);
            widen_cell_states(cell_states.data(), thread, granted);
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
                         weights_of(step, steps_unpacked, packs_on_the_way));
                row += grid.dealt(schedule_.active(step), thread);
            }
            if (streams_gates_) Vector::end_streaming();
            barrier.wait(granted);
            finish(part_of(shape_.batch, 1, thread, granted));
        });
    }

    Weights weights_of(int64_t step, bool unpacked, bool packs_on_the_way) const {
        const int64_t first = call_.initial_hidden == nullptr ? 1 : 0;
        if (step < first) return Weights::not_at_all;
        if (unpacked) return Weights::as_they_lie;
        return step == first && packs_on_the_way ? Weights::packed_on_the_way : Weights::packed;
    }

    void pack_hidden_weights(T* scratch, int thread, int threads) const {
        const Range panels = part_of(hidden_layout_.panels(), 1, thread, threads);
        Product::pack(hidden_weights_, hidden_layout_, panels, scratch,
                      [&](T* target, int64_t panel) {
                          pack_panel(target, hidden_layout_, panel, shape_.hidden, call_.weight_hh);
                      });
    }

    // The sum of the biases of `count` gates from `i` on.
    Vector bias_at(int64_t i, int64_t count) const {
        const Vector zero = Vector::broadcast(0);
        return (call_.bias_ih == nullptr ? zero : load_up_to<Vector>(call_.bias_ih + i, count)) +
               (call_.bias_hh == nullptr ? zero : load_up_to<Vector>(call_.bias_hh + i, count));
    }

    Row row_of(int64_t n, int64_t step) const {
        const int64_t hidden = shape_.hidden;
        const int64_t row = schedule_.row(n, step);
        Row result{};
        if (call_.gates != nullptr) result.gates = call_.gates + row * gates * hidden;
        result.hidden = call_.output + row * hidden;
        result.hidden_before = step == 0 ? row_or_null(call_.initial_hidden, n)
                                         : call_.output + schedule_.row(n, step - 1) * hidden;
        if constexpr (is_lstm) {
            result.cell =
                call_.cells == nullptr ? running_cell_ + n * hidden : call_.cells + row * hidden;
            result.cell_before = step == 0 ? row_or_null(initial_cell_, n)
                                 : call_.cells == nullptr
                                     ? result.cell
                                     : call_.cells + schedule_.row(n, step - 1) * hidden;
        }
        return result;
    }

    template <class State>
    const State* row_or_null(const State* states, int64_t n) const {
        return states == nullptr ? nullptr : states + n * shape_.hidden;
    }

    // Step after step is projected until a thread's room is full; returns the first that is not.
    int64_t project_from(int64_t step, const Grid& grid, int thread,
                         const typename Projection::Part& part, Left* copies) const {
        int64_t rows = 0;
        for (; step < schedule_.longest(); ++step) {
            const int64_t count = grid.dealt(schedule_.active(step), thread);
            if (rows > 0 && !part.has_room(rows, count)) break;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t n = sample_of(i, grid, thread);
                part.given()[rows++] = call_.input.data +
                                       schedule_.time(n, step) * call_.input.stride_step +
                                       n * call_.input.stride_batch;
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
            mine.rows[i] = row_of(sample_of(i, grid, thread), step);
            mine.states[i] = mine.rows[i].hidden_before;
        }
        const bool multiplies = weights != Weights::not_at_all;
        const auto states = Product::prepare(mine.states, Range{0, multiplies ? count : 0},
                                             shape_.hidden, mine.copies, mine.scales);
        const Range panels = grid.columns(hidden_layout_.panels(), thread);
        for (int64_t position = panels.begin; position < panels.end; ++position) {
            // There and back again: the weights that the last step read last are still in L2.
            const int64_t panel =
                step % 2 == 0 ? position : panels.begin + panels.end - 1 - position;
            for (int64_t i = 0; i < count; i += block_rows) {
                const int64_t block = smaller(block_rows, count - i);
                Vector sums[block_rows * (panel_units * gates)];
                sum_up(sums, part.at(panel, row + i), states.from(i), block, panel, weights);
                next_states(mine.rows + i, block, panel, sums);
            }
        }
    }

    // sums = the projections of `count` samples, and the recurrent weights' part, for one panel.
    void sum_up(Vector* sums, const Vector* projections,
                const typename Product::template Rows<Number>& states, int64_t count, int64_t panel,
                Weights weights) const {
        const int64_t line = hidden_layout_.units_of(panel) * gates;
        if (weights == Weights::packed) {
            Product::multiply_from(sums, projections, line, states, count, hidden_layout_, panel,
                                   hidden_weights_, call_.weight_hh);
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
        }
    }

    // The next state of `count` samples' hidden units of one panel.
    void next_states(const Row* rows, int64_t count, int64_t panel, const Vector* sums) const {
        const int64_t column = hidden_layout_.first_column(panel);
        const int64_t units = hidden_layout_.units_of(panel);
        for (int64_t m = 0; m < count; ++m) {
            for (int64_t u = 0; u < units; ++u) {
                next_state(rows[m], column + u * Vector::width, sums + (m * units + u) * gates);
            }
        }
    }

    // One step, with both weights as they lie.
    void run_single_step(int threads) {
        place_cell_states(nullptr);
        const int64_t hidden = shape_.hidden;
        const int64_t vectors = divide_rounding_up(hidden, Vector::width);
        const int64_t count = schedule_.active(0);
        const Scratch<Row> rows(count);
        const Scratch<const Number*> inputs(count), states(count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t n = schedule_.sample(i);
            rows.data()[i] = row_of(n, 0);
            inputs.data()[i] = call_.input.data + n * call_.input.stride_batch;
            states.data()[i] = rows.data()[i].hidden_before;
        }
        const bool has_state = call_.initial_hidden != nullptr;
        const Term<T> input_term{inputs.data(), call_.weight_ih, shape_.inputs};
        const Term<T> state_term{has_state ? states.data() : nullptr, call_.weight_hh, hidden};
        const int64_t copied = input_term.copied(Vector::width) + state_term.copied(Vector::width);
        const Scratch<T> copies(checked_product({copied, threads}));
        const int64_t weights = gates * hidden * (shape_.inputs + hidden);
        static std::atomic<unsigned> calls{0};
        const bool is_back = calls.fetch_add(1, std::memory_order_relaxed) % 2 == 1;
        const bool is_small = weights * (1 + count / 2) < single_thread_weights;
        run_parallel(is_small ? 1 : threads, [&](int thread, int granted) {
            const int64_t column_parts = larger(1, smaller(vectors, granted));
            const int64_t row_parts =
                larger(1, smaller(divide_rounding_up(count, tile_rows), granted / column_parts));
            const Grid grid{row_parts, column_parts};
            const Range samples = grid.rows(count, tile_rows, thread);
            const Range columns = grid.columns(vectors, thread);
            Vector sums[block_rows * gates];
            for (int64_t position = columns.begin; position < columns.end; ++position) {
                // There and back again: the weights that the last call read last are still in L2.
                const int64_t vector =
                    is_back ? columns.begin + columns.end - 1 - position : position;
                const int64_t unit = vector * Vector::width;
                for (int64_t i = samples.begin; i < samples.end; i += block_rows) {
                    const int64_t block = smaller(block_rows, samples.end - i);
                    const Term<T> terms[most_terms] = {input_term.from(i), state_term.from(i)};
                    for (int64_t g = 0; g < gates; ++g) {
                        const int64_t first = g * hidden + unit;
                        const Vector bias = bias_at(first, hidden - unit);
                        for (int64_t m = 0; m < block; ++m) sums[m * gates + g] = bias;
                        add_terms(sums + g, gates, block, first,
                                  smaller(Vector::width, hidden - unit), terms,
                                  copies.data() + thread * copied);
                    }
                    for (int64_t m = 0; m < block; ++m) {
                        next_state(rows.data()[i + m], unit, sums + m * gates);
                    }
                }
            }
        });
        finish({0, shape_.batch});
    }

    void next_state(const Row& row, int64_t unit, const Vector* sums) const {
        const int64_t count = shape_.hidden - unit;
        if constexpr (is_lstm) {
            const Vector input_gate = sigmoid(sums[0]);
            const Vector forget_gate = sigmoid(sums[1]);
            const Vector candidate = hyperbolic_tangent(sums[2]);
            const Vector output_gate = sigmoid(sums[3]);
            const Vector before = row.cell_before == nullptr
                                      ? Vector::broadcast(0)
                                      : load_up_to<Vector>(row.cell_before + unit, count);
            const Vector next = multiply_add(forget_gate, before, input_gate * candidate);
            store_up_to(next, row.cell + unit, count);
            store_up_to(output_gate * hyperbolic_tangent(next), row.hidden + unit, count);
            if (row.gates != nullptr) {
                keep_gate(input_gate, row.gates + unit, count);
                keep_gate(forget_gate, row.gates + shape_.hidden + unit, count);
                keep_gate(candidate, row.gates + 2 * shape_.hidden + unit, count);
                keep_gate(output_gate, row.gates + 3 * shape_.hidden + unit, count);
            }
        } else {
            const Vector next = cell_type == RecurrentCell::rnn_tanh
                                    ? hyperbolic_tangent(sums[0])
                                    : maximum(Vector::broadcast(0), sums[0]);
            store_up_to(next, row.hidden + unit, count);
        }
    }

    void keep_gate(Vector gate, T* target, int64_t count) const {
        if (streams_gates_) {
            gate.stream(target);
        } else {
            store_up_to(gate, target, count);
        }
    }

    // Whether the gates are too many to be still in a cache when the backward reads them, and lie
    // in whole vectors.
    bool streams_gates() const {
        constexpr int64_t least_bytes = 16 << 20;
        const int64_t gate_bytes =
            checked_product({shape_.steps, shape_.batch, gates, shape_.hidden, int64_t{sizeof(T)}});
        return Vector::can_stream && gate_bytes >= least_bytes &&
               shape_.hidden % Vector::width == 0 &&
               reinterpret_cast<std::uintptr_t>(call_.gates) % sizeof(Vector) == 0;
    }

    // Zeros beyond the lengths, and the final states.
    void finish(Range samples) const {
        const int64_t hidden = shape_.hidden;
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            const int64_t length = schedule_.length(n);
            for (int64_t time = length; time < shape_.steps; ++time) {
                Number* output = call_.output + (time * shape_.batch + n) * hidden;
                std::memset(output, 0, static_cast<std::size_t>(hidden) * sizeof(Number));
            }
            const int64_t last = length > 0 ? schedule_.row(n, length - 1) * hidden : 0;
            if (call_.final_hidden != nullptr) {
                copy(length > 0 ? call_.output + last : row_or_null(call_.initial_hidden, n),
                     call_.final_hidden + n * hidden, hidden);
            }
            if (is_lstm && (is_narrow || call_.cells != nullptr || length == 0)) {
                const T* running =
                    call_.cells == nullptr ? running_cell_ + n * hidden : call_.cells + last;
                copy(length > 0 ? running : row_or_null(initial_cell_, n),
                     call_.final_cell + n * hidden, hidden);
            }
        }
    }

    // target = source, or zeros where that is null.
    template <class From, class To>
    static void copy(const From* source, To* target, int64_t count) {
        const auto bytes = static_cast<std::size_t>(count) * sizeof(To);
        if (bytes == 0) return;
        if (source == nullptr) {
            std::memset(target, 0, bytes);
        } else if constexpr (std::is_same_v<From, To>) {
            std::memcpy(target, source, bytes);
        } else {
            convert_numbers<Vector>(source, target, count);
        }
    }

    const RecurrenceForward<Number>& call_;
    const RecurrenceShape& shape_;
    const Schedule schedule_;
    const PanelLayout<Vector> input_layout_;
    const PanelLayout<Vector> hidden_layout_;
    Packed* hidden_weights_ = nullptr;
    const T* initial_cell_ = nullptr;  // or null for zeros
    bool streams_gates_ = false;
    T* running_cell_ = nullptr;  // where cell states live that are not all kept
};

template <class Vector, class Product, class Number>
void recurrence_forward_by(const RecurrenceForward<Number>& arguments, int threads) {
    with_cell(arguments.shape.cell, [&](auto cell) {
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
