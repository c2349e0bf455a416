// A step of an LSTM or RNN, a thread for each sample and hidden unit, launched once for each step:
// the baseline, for every size, type and GPU.
//
//   a = projections[t] + bias_ih + bias_hh + weight_hh h            (G H)
//   i, f, o = sigmoid(a), g = tanh(a);  c = f c + i g;  h = o tanh(c)      or  h = tanh or relu(a)
//
// Step s is at position t = s of a sample, or length - 1 - s in reverse; a sample runs while
// s < length, and its output beyond is zero.
//
// Backward, from the last step to the first, with da the gradients of a at the following step:
//   dh = grad_output[t] + weight_hh^T da, or the final state's after the last step
//   do = dh tanh(c);  dc += dh o (1 - tanh(c)^2);  di = dc g;  dg = dc i;  df = dc c before;
//   dc *= f
// each times the slope of its activation.
//
// Shapes and ownership: recurrence.h. No output aliases an input, but a step reads what earlier
// ones wrote.
//
// The product with the weight may be the caller's, a step at a time.
//
// Cost of a step: 2 N G H^2 FLOPs by dot products whose weights come from L2, G H^2 numbers for
// every sample; and a launch. Limit: L2 and launches; far from the matrix units. Measured on an
// H200, with weights transposed beforehand: N 16, H 512 in float32 174 us.
#pragma once

#include "grid.h"
#include "recurrence.h"
#include "recurrence_rules.h"

namespace seqkernels::cuda {

// The states before the first step; they are the final ones of samples without steps.
template <class T>
__global__ void begin_recurrence(RecurrenceForward<T> call) {
    const int64_t states = call.shape.batch * call.shape.hidden;
    for (int64_t index = thread_in_grid(); index < states; index += threads_in_grid()) {
        call.final_hidden[index] = call.initial_hidden[index];
        if (call.cell != nullptr) {
            call.cell[index] = widened(call.initial_cell[index]);
            call.final_cell[index] = call.initial_cell[index];
        }
    }
}

template <class T>
__global__ void simple_step(RecurrenceForward<T> call, int64_t step) {
    using Number = Accumulator<T>;
    const RecurrenceShape& shape = call.shape;
    const int64_t hidden = shape.hidden, rows = shape.gates() * hidden;
    const int64_t states = shape.batch * hidden;
    for (int64_t index = thread_in_grid(); index < states; index += threads_in_grid()) {
        const int64_t sample = index / hidden, unit = index % hidden;
        const int64_t length = sequence_length(shape, call.lengths, sample);
        if (step >= length) {
            call.output[step * states + index] = narrowed<T>(0);
            continue;
        }
        const int64_t position = position_of(shape, length, step);
        const T* before = step == 0 ? call.initial_hidden
                                    : call.output + position_of(shape, length, step - 1) * states;
        const int64_t place = (position * shape.batch + sample) * rows + unit;
        Number sums[4];
        for (int64_t gate = 0; gate < shape.gates(); ++gate) {
            const int64_t row = gate * hidden + unit;
            Number sum = 0;
            const T* weights = call.weight + row * hidden;
            if (call.recurrent != nullptr) {
                sum = call.recurrent[sample * rows + row];
            } else {
                for (int64_t k = 0; k < hidden; ++k) {
                    sum += widened(before[sample * hidden + k]) * widened(weights[k]);
                }
            }
            sum += call.projections[place + gate * hidden];
            if (call.bias_ih != nullptr) sum += widened(call.bias_ih[row]);
            if (call.bias_hh != nullptr) sum += widened(call.bias_hh[row]);
            sums[gate] = sum;
        }
        Number state;
        if (shape.cell == RecurrentCell::lstm) {
            const auto gates = LstmGates<Number>::of_sums(sums);
            Number& cell = call.cell[index];
            state = gates.step(cell);
            if (call.gates != nullptr) {
                const Number activated[4] = {gates.i, gates.f, gates.g, gates.o};
                for (int gate = 0; gate < 4; ++gate) {
                    call.gates[place + gate * hidden] = activated[gate];
                }
                call.cells[position * states + index] = cell;
            }
            if (step == length - 1) call.final_cell[index] = narrowed<T>(cell);
        } else {
            state = rnn_state(shape.cell, sums[0]);
        }
        call.output[position * states + index] = narrowed<T>(state);
        call.final_hidden[index] = narrowed<T>(state);
    }
}

// What comes back to the state after a step from the following one, or to the initial state from
// the first (step -1): the final state's gradient where there is none.
template <class T>
__device__ inline Accumulator<T> from_following_step(const RecurrenceBackward<T>& call,
                                                     int64_t length, int64_t step, int64_t index) {
    const RecurrenceShape& shape = call.shape;
    const int64_t hidden = shape.hidden, rows = shape.gates() * hidden;
    const int64_t sample = index / hidden, unit = index % hidden;
    if (step == length - 1) {
        return call.grad_final_hidden == nullptr ? 0 : widened(call.grad_final_hidden[index]);
    }
    if (call.from_following != nullptr) return call.from_following[index];
    const int64_t following = position_of(shape, length, step + 1);
    const T* gradients = call.grad_gates + (following * shape.batch + sample) * rows;
    Accumulator<T> sum = 0;
    for (int64_t row = 0; row < rows; ++row) {
        sum += widened(gradients[row]) * widened(call.weight[row * hidden + unit]);
    }
    return sum;
}

// A gradient of a gate's sum, to its place.
template <class T>
__device__ inline void store_gradient(const RecurrenceBackward<T>& call, int64_t row,
                                      int64_t sample, int64_t column, Accumulator<T> gradient) {
    const int64_t rows = call.shape.gates() * call.shape.hidden;
    const T rounded = narrowed<T>(gradient);
    call.grad_gates[row * rows + column] = rounded;
    if (call.step_gates != nullptr) call.step_gates[sample * rows + column] = rounded;
}

template <class T>
__global__ void simple_step_backward(RecurrenceBackward<T> call, int64_t step) {
    using Number = Accumulator<T>;
    const RecurrenceShape& shape = call.shape;
    const int64_t hidden = shape.hidden, rows = shape.gates() * hidden;
    const int64_t states = shape.batch * hidden;
    for (int64_t index = thread_in_grid(); index < states; index += threads_in_grid()) {
        const int64_t sample = index / hidden, unit = index % hidden;
        const int64_t length = sequence_length(shape, call.lengths, sample);
        const bool runs = step < length;
        const int64_t position = runs ? position_of(shape, length, step) : step;
        const int64_t row = position * shape.batch + sample;
        if (!runs) {
            for (int64_t gate = 0; gate < shape.gates(); ++gate) {
                store_gradient(call, row, sample, gate * hidden + unit, 0);
            }
            continue;
        }
        const int64_t at = position * states + index;
        Number dh = from_following_step(call, length, step, index);
        if (call.grad_output != nullptr) dh += widened(call.grad_output[at]);
        if (shape.cell != RecurrentCell::lstm) {
            const Number h = widened(call.output[at]);
            store_gradient(call, row, sample, unit, rnn_gradient(shape.cell, h, dh));
            continue;
        }
        const Accumulator<T>* gates = call.gates + row * rows + unit;
        const Number before =
            step == 0 ? widened(call.initial_cell[index])
                      : call.cells[position_of(shape, length, step - 1) * states + index];
        Number grad_cell = 0;
        if (step < length - 1) {
            grad_cell = call.grad_cell[index];
        } else if (call.grad_final_cell != nullptr) {
            grad_cell = widened(call.grad_final_cell[index]);
        }
        Number gradients[4];
        lstm_gradients<Number>({gates[0], gates[hidden], gates[2 * hidden], gates[3 * hidden]},
                               std::tanh(call.cells[at]), before, dh, grad_cell, gradients);
        call.grad_cell[index] = grad_cell;
        for (int gate = 0; gate < 4; ++gate) {
            store_gradient(call, row, sample, gate * hidden + unit, gradients[gate]);
        }
    }
}

// The gradients of the initial states; of samples without steps the final states'.
template <class T>
__global__ void end_recurrence_backward(RecurrenceBackward<T> call) {
    const RecurrenceShape& shape = call.shape;
    const int64_t states = shape.batch * shape.hidden;
    for (int64_t index = thread_in_grid(); index < states; index += threads_in_grid()) {
        const int64_t length = sequence_length(shape, call.lengths, index / shape.hidden);
        call.grad_initial_hidden[index] = narrowed<T>(from_following_step(call, length, -1, index));
        if (call.grad_initial_cell == nullptr) continue;
        Accumulator<T> gradient = 0;
        if (length > 0) {
            gradient = call.grad_cell[index];
        } else if (call.grad_final_cell != nullptr) {
            gradient = widened(call.grad_final_cell[index]);
        }
        call.grad_initial_cell[index] = narrowed<T>(gradient);
    }
}

}  // namespace seqkernels::cuda
