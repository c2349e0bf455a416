// The sizes of a recurrence, on whichever device.
#pragma once

#include <cstdint>
#include <type_traits>

namespace seqkernels {

enum class RecurrentCell { lstm, rnn_tanh, rnn_relu };

constexpr int64_t gates_of(RecurrentCell cell) { return cell == RecurrentCell::lstm ? 4 : 1; }

// Shapes of a recurrence: T steps, N samples, I inputs, H hidden units, G gates.
struct RecurrenceShape {
    int64_t steps;
    int64_t batch;
    int64_t inputs;
    int64_t hidden;
    RecurrentCell cell;
    bool reverse;

    constexpr int64_t gates() const { return gates_of(cell); }
};

// Calls function(std::integral_constant<RecurrentCell, cell>) for a cell known at run time.
template <class Function>
inline void with_cell(RecurrentCell cell, Function&& function) {
    using Cell = RecurrentCell;
    switch (cell) {
        case Cell::lstm:
            return function(std::integral_constant<Cell, Cell::lstm>());
        case Cell::rnn_tanh:
            return function(std::integral_constant<Cell, Cell::rnn_tanh>());
        case Cell::rnn_relu:
            return function(std::integral_constant<Cell, Cell::rnn_relu>());
    }
}

}  // namespace seqkernels
