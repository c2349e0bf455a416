// The sizes of a recurrence, on whichever device.
#pragma once

#include <cstdint>

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

}  // namespace seqkernels
