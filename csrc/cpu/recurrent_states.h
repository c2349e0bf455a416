// The states of a recurrence, step after step: where those of a sample lie, how the next ones come
// of its gates' sums, and what is left of them in the end.
//
// Shapes and ownership: RecurrenceForward in kernels.h. Of numbers narrower than the sums the
// running cell states are scratch, N H, owned by who calls.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "product.h"
#include "recurrence_schedule.h"
#include "vector_math.h"

namespace seqkernels {

// Number: what input, states and output hold.
template <class Vector, RecurrentCell cell_type, class Number>
class RecurrentStates {
    using T = typename Vector::Element;
    static constexpr bool is_lstm = cell_type == RecurrentCell::lstm;
    // Sums and cell states are then kept in a wider type than they are given in.
    static constexpr bool is_narrow = !std::is_same_v<Number, T>;

 public:
    static constexpr int gates = is_lstm ? 4 : 1;

    RecurrentStates(const RecurrenceForward<Number>& arguments, const Schedule& schedule)
        : call_(arguments), shape_(arguments.shape), schedule_(schedule) {}

    // Room for the cell states, if they are kept in another type than they are given in.
    int64_t running_cell_elements() const {
        return is_lstm && is_narrow ? checked_product({shape_.batch, shape_.hidden}) : 0;
    }
    // widened: running_cell_elements
    void place_cell_states(T* widened) {
        if constexpr (is_narrow) {
            initial_cell_ = call_.initial_cell == nullptr ? nullptr : widened;
            running_cell_ = widened;
        } else {
            initial_cell_ = call_.initial_cell;
            running_cell_ = call_.final_cell;
        }
        streams_gates_ = call_.gates != nullptr && streams_gates();
    }
    // A thread's part of those that the first step reads.
    void widen_cell_states(int thread, int threads) const {
        if (!is_lstm || !is_narrow || call_.initial_cell == nullptr) return;
        const Range mine = part_of(shape_.batch * shape_.hidden, Vector::width, thread, threads);
        convert_numbers<Vector>(call_.initial_cell + mine.begin, running_cell_ + mine.begin,
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

    Row row(int64_t n, int64_t step) const {
        const int64_t hidden = shape_.hidden;
        const int64_t row = schedule_.row(n, step);
        Row result{};
        if (call_.gates != nullptr) result.gates = call_.gates + row * gates * hidden;
        result.hidden = output_row(row);
        result.hidden_before = step == 0 ? row_or_null(call_.initial_hidden, n)
                                         : output_row(schedule_.row(n, step - 1));
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

    // The sum of the biases of `count` gates from `i` on.
    Vector bias(int64_t i, int64_t count) const {
        const Vector zero = Vector::broadcast(0);
        return (call_.bias_ih == nullptr ? zero : load_up_to<Vector>(call_.bias_ih + i, count)) +
               (call_.bias_hh == nullptr ? zero : load_up_to<Vector>(call_.bias_hh + i, count));
    }

    // The next states of a vector's worth of a sample's hidden units; sums: of their gates.
    void next(const Row& row, int64_t unit, const Vector* sums) const {
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

    // What a thread calls after its last step.
    void end_steps() const {
        if (streams_gates_) Vector::end_streaming();
    }

    // Zeros beyond the lengths, and the final states.
    void finish(Range samples) const {
        const int64_t hidden = shape_.hidden;
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            const int64_t length = schedule_.length(n);
            schedule_.for_each_row_beyond(n, [&](int64_t row) {
                std::memset(output_row(row), 0, static_cast<std::size_t>(hidden) * sizeof(Number));
            });
            const int64_t last = length > 0 ? schedule_.row(n, length - 1) : 0;
            if (call_.final_hidden != nullptr) {
                copy(length > 0 ? output_row(last) : row_or_null(call_.initial_hidden, n),
                     call_.final_hidden + n * hidden, hidden);
            }
            if (is_lstm && (is_narrow || call_.cells != nullptr || length == 0)) {
                const T* running = call_.cells == nullptr ? running_cell_ + n * hidden
                                                          : call_.cells + last * hidden;
                copy(length > 0 ? running : row_or_null(initial_cell_, n),
                     call_.final_cell + n * hidden, hidden);
            }
        }
    }

 private:
    Number* output_row(int64_t row) const { return call_.output + row * call_.output_stride; }

    template <class State>
    const State* row_or_null(const State* states, int64_t n) const {
        return states == nullptr ? nullptr : states + n * shape_.hidden;
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
            checked_product({schedule_.row_count(), gates, shape_.hidden, int64_t{sizeof(T)}});
        return Vector::can_stream && gate_bytes >= least_bytes &&
               shape_.hidden % Vector::width == 0 &&
               reinterpret_cast<std::uintptr_t>(call_.gates) % sizeof(Vector) == 0;
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
    const Schedule& schedule_;
    const T* initial_cell_ = nullptr;  // or null for zeros
    T* running_cell_ = nullptr;        // where cell states live that are not all kept
    bool streams_gates_ = false;
};

}  // namespace seqkernels
