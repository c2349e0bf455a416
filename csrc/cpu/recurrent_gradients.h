// The gradients of a recurrence, step before step: where those of a sample lie, and how those of
// its gates come of its state's.
//
// Shapes and ownership: RecurrenceBackward in kernels.h. Scratch, owned by who calls: of numbers
// narrower than the sums, initial cell states, N H; of those too, and where the initial ones'
// gradients are not asked for, the cell states' running gradients, N H.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "product.h"
#include "recurrence_schedule.h"
#include "vector_math.h"

namespace seqkernels {

// Number: what input, states and their gradients hold.
template <class Vector, RecurrentCell cell_type, class Number>
class RecurrentGradients {
    using T = typename Vector::Element;
    static constexpr bool is_lstm = cell_type == RecurrentCell::lstm;
    // Running gradients of cell states are then kept in a wider type than they are given in.
    static constexpr bool is_narrow = !std::is_same_v<Number, T>;

 public:
    static constexpr int gates = is_lstm ? 4 : 1;
    // Then gradients of gates too are kept as they are multiplied.
    using Gate = Number;

    RecurrentGradients(const RecurrenceBackward<Number>& arguments, const Schedule& schedule)
        : call_(arguments), shape_(arguments.shape), schedule_(schedule) {}

    // Room for the initial cell states, if they are kept in another type than they are given in.
    int64_t initial_cell_elements() const {
        return is_narrow && call_.initial_cell != nullptr ? states() : 0;
    }
    // Room for the running gradients of cell states, if that is not where they go in the end.
    int64_t grad_cell_elements() const {
        return is_lstm && (is_narrow || call_.grad_initial_cell == nullptr) ? states() : 0;
    }
    void place_cell_states(T* initial_cells, T* grad_cells) {
        grad_cell_ = grad_cells;
        if constexpr (is_narrow) {
            widened_initial_cell_ = call_.initial_cell == nullptr ? nullptr : initial_cells;
            initial_cell_ = widened_initial_cell_;
        } else {
            initial_cell_ = call_.initial_cell;
            if (call_.grad_initial_cell != nullptr) grad_cell_ = call_.grad_initial_cell;
        }
    }

    // A thread's part of what the last step begins with, and of what the first leaves.
    void start(int thread, int threads) const {
        if constexpr (is_lstm) {
            const Range samples = part_of(shape_.batch, 1, thread, threads);
            start_from(call_.grad_final_cell, grad_cell_, samples);
            if (widened_initial_cell_ != nullptr) {
                start_from(call_.initial_cell, widened_initial_cell_, samples);
            }
        }
    }
    void finish(int thread, int threads) const {
        if constexpr (is_lstm && is_narrow) {
            if (call_.grad_initial_cell == nullptr) return;
            start_from(grad_cell_, call_.grad_initial_cell,
                       part_of(shape_.batch, 1, thread, threads));
        }
    }
    // A sample that never runs passes its state's gradient through.
    void pass_through(int64_t n) const {
        if (call_.grad_initial_hidden == nullptr) return;
        start_from(call_.grad_final_hidden, call_.grad_initial_hidden, {n, n + 1});
    }

    // Where one sample's data of one step lie.
    struct Row {
        const T* gates;
        const Number* hidden;
        const T* cell;
        const T* cell_before;  // or null for zeros
        const Number* grad_hidden;
        const Number* grad_final_hidden;
        T* grad_cell;
    };

    Row row(int64_t n, int64_t step) const {
        const int64_t hidden = shape_.hidden;
        const int64_t row = schedule_.row(n, step);
        Row result{};
        if (step + 1 == schedule_.length(n) && call_.grad_final_hidden != nullptr) {
            result.grad_final_hidden = call_.grad_final_hidden + n * hidden;
        }
        if (call_.grad_output != nullptr) result.grad_hidden = call_.grad_output + row * hidden;
        result.hidden = call_.output + row * hidden;
        if constexpr (is_lstm) {
            result.gates = call_.gates + row * gates * hidden;
            result.cell = call_.cells + row * hidden;
            if (step > 0) {
                result.cell_before = call_.cells + schedule_.row(n, step - 1) * hidden;
            } else if (initial_cell_ != nullptr) {
                result.cell_before = initial_cell_ + n * hidden;
            }
            result.grad_cell = grad_cell_ + n * hidden;
        }
        return result;
    }

    // Asks for what of_state and step_back will read of a vector's worth of hidden units, into L2.
    // The cell states they have read as those before the step after.
    void fetch(const Row& row, int64_t unit) const {
        const auto ask_for = [](const void* numbers) { __builtin_prefetch(numbers, 0, 2); };
        if (row.grad_hidden != nullptr) ask_for(row.grad_hidden + unit);
        if constexpr (is_lstm) {
            for (int g = 0; g < gates; ++g) ask_for(row.gates + g * shape_.hidden + unit);
            if (row.cell_before != nullptr) ask_for(row.cell_before + unit);
        } else {
            ask_for(row.hidden + unit);
        }
    }

    // Rows whose gradients are computed next, fetched while others are multiplied (Meanwhile in
    // product.h): the vectors of `units` of those in `range`.
    class RowsToCome {
     public:
        RowsToCome(const RecurrentGradients& gradients, const Row* rows, Range range, Range units)
            : gradients_(gradients),
              rows_(rows + range.begin),
              first_unit_(units.begin),
              vectors_(divide_rounding_up(units.end - units.begin, Vector::width)),
              count_((range.end - range.begin) * vectors_) {}
        void in_turns(int64_t turns) { turns_ = turns; }
        void operator()(int64_t turn) const {
            const int64_t end = (turn + 1) * count_ / turns_;
            for (int64_t i = turn * count_ / turns_; i < end; ++i) {
                gradients_.fetch(rows_[i / vectors_], first_unit_ + i % vectors_ * Vector::width);
            }
        }

     private:
        const RecurrentGradients& gradients_;
        const Row* const rows_;
        const int64_t first_unit_, vectors_, count_;  // vectors of a row, and of all
        int64_t turns_ = 1;
    };

    // What the gradient of a vector's worth of a state is without that of the step after.
    Vector of_state(const Row& row, int64_t unit) const {
        const int64_t count = shape_.hidden - unit;
        Vector sum = row.grad_hidden == nullptr ? Vector::broadcast(0)
                                                : load_up_to<Vector>(row.grad_hidden + unit, count);
        if (row.grad_final_hidden != nullptr) {
            sum = sum + load_up_to<Vector>(row.grad_final_hidden + unit, count);
        }
        return sum;
    }

    // The gates' gradients of a vector's worth of hidden units, of which grad_hidden is the
    // state's; they go to `target`, gates `line` numbers apart.
    void step_back(const Row& row, int64_t unit, Vector grad_hidden, Gate* target,
                   int64_t line) const {
        const int64_t hidden = shape_.hidden;
        const int64_t count = hidden - unit;
        const auto store = [&](int g, Vector gradient) {
            store_up_to(gradient, target + g * line, count);
        };
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
            const Vector before = row.cell_before == nullptr
                                      ? Vector::broadcast(0)
                                      : load_up_to<Vector>(row.cell_before + unit, count);
            store(0, grad_cell * candidate * (input_gate * (one - input_gate)));
            store(1, grad_cell * before * (forget_gate * (one - forget_gate)));
            store(2, grad_cell * input_gate * (one - candidate * candidate));
            store(3, grad_hidden * squashed * (output_gate * (one - output_gate)));
            store_up_to(grad_cell * forget_gate, row.grad_cell + unit, count);
        } else {
            const Vector h = load_up_to<Vector>(row.hidden + unit, count);
            const Vector zero = Vector::broadcast(0);
            store(0, cell_type == RecurrentCell::rnn_tanh
                         ? grad_hidden * (one - h * h)
                         : select(at_most(h, zero), zero, grad_hidden));
        }
    }

 private:
    int64_t states() const { return checked_product({shape_.batch, shape_.hidden}); }

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

    const RecurrenceBackward<Number>& call_;
    const RecurrenceShape& shape_;
    const Schedule& schedule_;
    const T* initial_cell_ = nullptr;
    T* widened_initial_cell_ = nullptr;
    T* grad_cell_ = nullptr;
};

}  // namespace seqkernels
