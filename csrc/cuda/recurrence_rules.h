// What every recurrence kernel agrees on.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/recurrence.h"
#include "cuda/device.h"
#include "sequence.h"

namespace seqkernels::cuda {

__device__ inline int64_t sequence_length(const RecurrenceShape& shape, const int64_t* lengths,
                                          int64_t sample) {
    return length_of(lengths, shape.steps, sample);
}

// Where in time a sample's step is.
__device__ inline int64_t position_of(const RecurrenceShape& shape, int64_t length, int64_t step) {
    return shape.reverse ? length - 1 - step : step;
}

// The row of an array (T, N, ...) that a sample's step is at.
__device__ inline int64_t row_of(const RecurrenceShape& shape, int64_t sample, int64_t length,
                                 int64_t step) {
    return position_of(shape, length, step) * shape.batch + sample;
}

// An LSTM's gates of one unit after their activations.
template <class Number>
struct LstmGates {
    Number i, f, g, o;

    __device__ static LstmGates of_sums(const Number* sums) {
        return {sigmoid(sums[0]), sigmoid(sums[1]), std::tanh(sums[2]), sigmoid(sums[3])};
    }
    // The hidden state; `cell` becomes the new cell state.
    __device__ Number step(Number& cell) const {
        cell = f * cell + i * g;
        return o * std::tanh(cell);
    }
};

// Gradients of the gates' sums, in their order, from dh, that of the hidden state. grad_cell, that
// of the cell state from the following step, becomes that of the state before.
template <class Number>
__device__ inline void lstm_gradients(const LstmGates<Number>& gates, Number tanh_c,
                                      Number cell_before, Number dh, Number& grad_cell,
                                      Number (&gradients)[4]) {
    const auto [i, f, g, o] = gates;
    const Number dc = grad_cell + dh * o * (1 - tanh_c * tanh_c);
    gradients[0] = dc * g * (i * (1 - i));
    gradients[1] = dc * cell_before * (f * (1 - f));
    gradients[2] = dc * i * (1 - g * g);
    gradients[3] = dh * tanh_c * (o * (1 - o));
    grad_cell = dc * f;
}

// For what is rounded to type T in the end: of 16 bits to about 2^-21 of the value.
template <class T>
__device__ inline float sigmoid_for(float x) {
    if constexpr (!is_sixteen_bit<T>) return sigmoid(x);
    return fast_reciprocal(1 + fast_exp2(-1.442695041f * x));
}
template <class T>
__device__ inline float tanh_for(float x) {
    if constexpr (!is_sixteen_bit<T>) return std::tanh(x);
    const float magnitude = fabsf(x);
    if (magnitude < 0.0625f) {  // where 1 - e cancels
        const float square = x * x;
        return x * (1 + square * (-1.0f / 3 + square * (2.0f / 15)));
    }
    const float e = fast_exp2(-2.885390082f * magnitude);
    return copysignf((1 - e) * fast_reciprocal(1 + e), x);  // NaN stays
}

template <class Number>
__device__ inline Number rnn_state(RecurrentCell cell, Number sum) {
    if (cell == RecurrentCell::rnn_tanh) return std::tanh(sum);
    return sum <= 0 ? Number(0) : sum;  // NaN stays
}

// The gradient of an RNN's sum, h being the state that became of it.
template <class Number>
__device__ inline Number rnn_gradient(RecurrentCell cell, Number h, Number dh) {
    if (cell == RecurrentCell::rnn_tanh) return dh * (1 - h * h);
    return h <= 0 ? Number(0) : dh;
}

}  // namespace seqkernels::cuda
