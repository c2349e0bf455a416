// What a convolution kernel is given, on whichever device.
//
// Sizes and strides count elements. Who calls a kernel has checked them: the pointers cover what
// the shapes say, and no output overlaps another array.
#pragma once

#include <cstdint>

#include "range.h"
#include "stored.h"

namespace seqkernels {

enum class Activation { identity, relu, tanh, sigmoid };

// Shapes of a convolution with pooling. N samples of L positions with C channels, F filters of k
// taps, P pooled outputs a sample and filter.
struct ConvolutionShape {
    int64_t batch;
    int64_t length;
    int64_t channels;
    int64_t filters;
    int64_t kernel_size;
    int64_t stride;
    int64_t padding_left;
    int64_t padding_right;
    int64_t dilation;
    int64_t pool_size;    // windows in a pool; 0: all of them, pooled == 1
    int64_t pool_stride;  // windows from one pool to the next; 0 with pool_size 0
    int64_t pooled;
    Activation activation;

    // Positions from the first that a window reads to behind the last.
    constexpr int64_t reach() const { return dilation * (kernel_size - 1) + 1; }
    // Windows that fit into a sequence of `length` positions and its padding.
    constexpr int64_t windows(int64_t of_length) const {
        const int64_t room = of_length + padding_left + padding_right - reach();
        return room < 0 ? 0 : room / stride + 1;
    }
    // Pooled outputs that fit into that many windows.
    constexpr int64_t pools(int64_t of_windows) const {
        if (pool_size == 0) return of_windows > 0 ? 1 : 0;
        return of_windows < pool_size ? 0 : (of_windows - pool_size) / pool_stride + 1;
    }
};

// The first input position that window `window` covers; negative within the padding.
static constexpr int64_t window_start(const ConvolutionShape& shape, int64_t window) {
    return window * shape.stride - shape.padding_left;
}

// The windows that pool `pool` of a sample with `windows` windows takes the maximum of.
static constexpr Range windows_of_pool(const ConvolutionShape& shape, int64_t pool,
                                       int64_t windows) {
    if (shape.pool_size == 0) return {0, windows};
    const int64_t begin = pool * shape.pool_stride;
    return {begin, smaller(windows, begin + shape.pool_size)};
}

// gradient times the derivative of the activation, y being the activation's output.
template <class T>
static constexpr T activation_gradient(Activation activation, T gradient, T y) {
    switch (activation) {
        case Activation::identity:
            return gradient;
        case Activation::relu:
            return y <= 0 ? T(0) : gradient;  // a NaN passes its gradient on, as in torch
        case Activation::tanh:
            return gradient * (1 - y * y);
        case Activation::sigmoid:
            return gradient * (y * (1 - y));
    }
    return gradient;
}

// A sequence batch as the convolution reads it: (N, L, C) with any strides.
struct SequenceView {
    Stored numbers;
    int64_t stride_batch;
    int64_t stride_length;
    int64_t stride_channel;
};

struct ConvolutionWeight {
    Stored numbers;  // (F, C, k)
    int64_t stride_filter;
    int64_t stride_channel;
    int64_t stride_tap;
};

template <class T>
struct ConvolutionForward {
    ConvolutionShape shape;
    SequenceView input;
    ConvolutionWeight weight;
    const T* bias;           // (F,) contiguous, or null
    const int64_t* lengths;  // (N,) contiguous, or null
    T* output;               // (N, P, F) with the strides below, written whole
    int64_t output_stride_batch;
    int64_t output_stride_pooled;
    int64_t output_stride_filter;
    int32_t* argmax;  // (N, P, F) contiguous: the winning window, -1 where there is none; or null
};

template <class T>
struct ConvolutionBackward {
    ConvolutionShape shape;
    SequenceView input;
    ConvolutionWeight weight;
    const int64_t* lengths;
    const T* grad_output;  // (N, P, F) with the strides below
    int64_t grad_output_stride_batch;
    int64_t grad_output_stride_pooled;
    int64_t grad_output_stride_filter;
    const T* output;  // as the forward wrote it
    int64_t output_stride_batch;
    int64_t output_stride_pooled;
    int64_t output_stride_filter;
    const int32_t* argmax;  // (N, P, F) contiguous
    T* grad_input;          // (N, L, C) contiguous, written whole; or null
    T* grad_weight;         // (F, C, k) contiguous, written whole; or null
    T* grad_bias;           // (F,), written whole; or null
};

}  // namespace seqkernels
