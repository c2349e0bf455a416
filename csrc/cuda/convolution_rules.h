// What every convolution kernel agrees on: which positions are real, which window wins, and what is
// made of the winner.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/convolution.h"
#include "cuda/device.h"
#include "grid.h"
#include "sequence.h"

namespace seqkernels::cuda {

__device__ inline int64_t sample_length(const ConvolutionShape& shape, const int64_t* lengths,
                                        int64_t sample) {
    return length_of(lengths, shape.length, sample);
}

// A maximum so far and the window it was found in, -1 before the first.
template <class Number>
struct Winner {
    Number value = 0;
    int32_t window = -1;

    // The next window, after all that came so far: the first NaN wins, else the first of the
    // largest.
    __device__ void follow(Number other, int32_t other_window) {
        if (window < 0 || other > value || (other != other && value == value)) {
            value = other;
            window = other_window;
        }
    }

    // The same where one has come before.
    __device__ void follow_another(Number other, int32_t other_window) {
        if (!(other <= value) && value == value) {
            value = other;
            window = other_window;
        }
    }

    // The same in whatever order they come; a window of -1 is none.
    __device__ void challenge(Number other, int32_t other_window) {
        const bool is_nan = value != value, other_is_nan = other != other;
        const bool is_equal = is_nan || other_is_nan ? is_nan && other_is_nan : other == value;
        const bool is_first = is_equal && other_window < window;
        const bool is_larger = is_nan || other_is_nan ? !is_nan && other_is_nan : other > value;
        if (other_window >= 0 && (window < 0 || is_larger || is_first)) {
            value = other;
            window = other_window;
        }
    }
};

template <class Number>
__device__ inline Number activate(Activation activation, Number x) {
    switch (activation) {
        case Activation::identity:
            return x;
        case Activation::relu:
            return x <= 0 ? Number(0) : x;  // NaN stays
        case Activation::tanh:
            return std::tanh(x);
        case Activation::sigmoid:
            return sigmoid(x);
    }
    return x;
}

// The output of a winner: the activations are monotone, so the maximum came first.
template <class T>
__device__ inline T result_of(const ConvolutionForward<T>& call, int64_t filter,
                              const Winner<Accumulator<T>>& winner) {
    if (winner.window < 0) return narrowed<T>(0);
    const Accumulator<T> bias = call.bias == nullptr ? 0 : widened(call.bias[filter]);
    return narrowed<T>(activate(call.shape.activation, winner.value + bias));
}

// Writes an entry of output and argmax.
template <class T>
__device__ inline void store_winner(const ConvolutionForward<T>& call, int64_t sample, int64_t pool,
                                    int64_t filter, const Winner<Accumulator<T>>& winner) {
    const ConvolutionShape& shape = call.shape;
    call.output[sample * call.output_stride_batch + pool * call.output_stride_pooled +
                filter * call.output_stride_filter] = result_of(call, filter, winner);
    if (call.argmax != nullptr) {
        call.argmax[(sample * shape.pooled + pool) * shape.filters + filter] = winner.window;
    }
}

// What a pool and filter of a sample pass on: to the bias and, times input and weight, to the taps
// of a window; -1 where none has won, or what argmax names is not a window of the pool.
template <class T>
struct PoolGradient {
    Accumulator<T> gradient = 0;
    int32_t window = -1;

    // windows: of the sample.
    __device__ PoolGradient(const ConvolutionBackward<T>& call, int64_t windows, int64_t sample,
                            int64_t pool, int64_t filter) {
        const ConvolutionShape& shape = call.shape;
        const int32_t winner = call.argmax[(sample * shape.pooled + pool) * shape.filters + filter];
        if (pool >= shape.pools(windows) || !windows_of_pool(shape, pool, windows).has(winner)) {
            return;
        }
        const T grad = call.grad_output[sample * call.grad_output_stride_batch +
                                        pool * call.grad_output_stride_pooled +
                                        filter * call.grad_output_stride_filter];
        const T output =
            call.output[sample * call.output_stride_batch + pool * call.output_stride_pooled +
                        filter * call.output_stride_filter];
        gradient = activation_gradient(shape.activation, widened(grad), widened(output));
        window = winner;
    }
};

// The pools of which a window may cover a position from `first` to `last`.
__device__ inline Range pools_over(const ConvolutionShape& shape, int64_t first, int64_t last) {
    if (shape.pool_size == 0) return {0, shape.pooled};
    const int64_t reach = shape.dilation * (shape.kernel_size - 1);
    const int64_t begin = first + shape.padding_left - reach;
    const int64_t first_window = begin <= 0 ? 0 : divide_rounding_up(begin, shape.stride);
    const int64_t last_window = (last + shape.padding_left) / shape.stride;
    const int64_t before = first_window - shape.pool_size + 1;
    return {before <= 0 ? 0 : divide_rounding_up(before, shape.pool_stride),
            smaller(shape.pooled, last_window / shape.pool_stride + 1)};
}

}  // namespace seqkernels::cuda
