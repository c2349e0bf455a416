// Convolutions with what their definition makes of them, for the kernels of any device.
#pragma once

#include <limits>

#include "check.h"

namespace seqkernels::testing {

struct Case {
    ConvolutionShape shape;
    bool channels_first;
    bool ragged;
};

inline ConvolutionShape shape_of(int64_t batch, int64_t length, int64_t channels, int64_t filters,
                                 int64_t kernel_size, int64_t stride, int64_t padding,
                                 int64_t dilation, int64_t pool_size, int64_t pool_stride,
                                 Activation activation) {
    ConvolutionShape shape{};
    shape.batch = batch;
    shape.length = length;
    shape.channels = channels;
    shape.filters = filters;
    shape.kernel_size = kernel_size;
    shape.stride = stride;
    shape.padding_left = padding;
    shape.padding_right = padding;
    shape.dilation = dilation;
    shape.pool_size = pool_size;
    shape.pool_stride = pool_stride;
    shape.activation = activation;
    shape.pooled = pool_size == 0 ? 1 : shape.pools(shape.windows(length));
    return shape;
}

// For any device.
inline std::vector<Case> cases() {
    using A = Activation;
    return {
        {shape_of(3, 17, 5, 7, 3, 1, 0, 1, 0, 0, A::tanh), false, false},
        {shape_of(2, 17, 5, 33, 3, 2, 2, 1, 0, 0, A::relu), true, true},
        {shape_of(2, 23, 16, 65, 4, 1, 3, 2, 3, 2, A::sigmoid), true, false},
        {shape_of(4, 20, 3, 17, 5, 3, 4, 1, 2, 2, A::identity), false, true},
        {shape_of(1, 1, 1, 1, 1, 1, 0, 1, 0, 0, A::identity), false, false},
        {shape_of(2, 2, 3, 4, 5, 1, 0, 1, 0, 0, A::sigmoid), false, false},
        {shape_of(0, 9, 3, 4, 2, 1, 0, 1, 0, 0, A::relu), false, false},
        {shape_of(2, 700, 60, 19, 2, 1, 1, 3, 0, 0, A::tanh), true, true},
        {shape_of(1, 700, 60, 19, 2, 1, 1, 1, 5, 3, A::relu), false, false},
        {shape_of(1, 300, 2, 9, 3, 1, 0, 1, 200, 1, A::identity), true, false},
        {shape_of(1, 900, 40, 9, 2, 1, 0, 1, 50, 1, A::relu), false, false},
        {shape_of(3, 75, 200, 40, 3, 1, 1, 1, 0, 0, A::relu), false, true},
        {shape_of(2, 31, 20, 18, 3, 1, 1, 1, 1, 3, A::relu), true, false},
    };
}

template <class T>
T activated(Activation activation, T x) {
    switch (activation) {
        case Activation::identity:
            return x;
        case Activation::relu:
            return x > 0 ? x : T(0);
        case Activation::tanh:
            return std::tanh(x);
        case Activation::sigmoid:
            return 1 / (1 + std::exp(-x));
    }
    return x;
}

// One case's arrays in double, and what the definition makes of them.
struct Problem {
    ConvolutionShape shape;
    bool channels_first;
    std::vector<double> input, weight, bias, output, grad_output;
    std::vector<int64_t> lengths;
    std::vector<int32_t> argmax;
    std::vector<double> grad_input, grad_weight, grad_bias;  // (N, L, C), (F, C, k), (F,)

    explicit Problem(const Case& test) : shape(test.shape), channels_first(test.channels_first) {
        const ConvolutionShape& s = shape;
        input = random_numbers<double>(s.batch * s.length * s.channels, 1);
        weight = random_numbers<double>(s.filters * s.channels * s.kernel_size, 2);
        bias = random_numbers<double>(s.filters, 3);
        grad_output = random_numbers<double>(s.batch * s.pooled * s.filters, 4);
        if (test.ragged) {
            for (int64_t n = 0; n < s.batch; ++n) lengths.push_back(n * 7 % (s.length + 1));
        }
        solve();
    }

    std::size_t input_index(int64_t n, int64_t position, int64_t channel) const {
        const int64_t index = channels_first
                                  ? (n * shape.channels + channel) * shape.length + position
                                  : (n * shape.length + position) * shape.channels + channel;
        return static_cast<std::size_t>(index);
    }
    std::size_t weight_index(int64_t f, int64_t channel, int64_t tap) const {
        return static_cast<std::size_t>((f * shape.channels + channel) * shape.kernel_size + tap);
    }

    template <class Visit>
    void for_each_term(int64_t n, int64_t window, Visit&& visit) const {
        const int64_t length =
            lengths.empty() ? shape.length : lengths[static_cast<std::size_t>(n)];
        for (int64_t tap = 0; tap < shape.kernel_size; ++tap) {
            const int64_t position =
                window * shape.stride + tap * shape.dilation - shape.padding_left;
            if (position < 0 || position >= length) continue;
            for (int64_t channel = 0; channel < shape.channels; ++channel) {
                visit(position, channel, tap);
            }
        }
    }

    void solve() {
        const ConvolutionShape& s = shape;
        output.assign(grad_output.size(), 0);
        argmax.assign(grad_output.size(), -1);
        grad_input.assign(input.size(), 0);
        grad_weight.assign(weight.size(), 0);
        grad_bias.assign(bias.size(), 0);
        for (int64_t n = 0; n < s.batch; ++n) {
            const int64_t length =
                lengths.empty() ? s.length : lengths[static_cast<std::size_t>(n)];
            const int64_t windows = s.windows(length);
            for (int64_t pool = 0; pool < s.pools(windows); ++pool) {
                const int64_t begin = pool * s.pool_stride;
                const int64_t end = s.pool_size == 0 ? windows : begin + s.pool_size;
                for (int64_t f = 0; f < s.filters; ++f) solve_pool(n, pool, f, begin, end);
            }
        }
    }

    void solve_pool(int64_t n, int64_t pool, int64_t f, int64_t begin, int64_t end) {
        const auto entry = static_cast<std::size_t>((n * shape.pooled + pool) * shape.filters + f);
        double best = -INFINITY;
        for (int64_t window = begin; window < end; ++window) {
            double sum = 0;
            for_each_term(n, window, [&](int64_t position, int64_t channel, int64_t tap) {
                sum += weight[weight_index(f, channel, tap)] *
                       input[input_index(n, position, channel)];
            });
            if (sum > best) {
                best = sum;
                argmax[entry] = static_cast<int32_t>(window);
            }
        }
        const double y = activated(shape.activation, best + bias[static_cast<std::size_t>(f)]);
        output[entry] = y;
        double slope = 1;
        if (shape.activation == Activation::relu) slope = y > 0;
        if (shape.activation == Activation::tanh) slope = 1 - y * y;
        if (shape.activation == Activation::sigmoid) slope = y * (1 - y);
        const double gradient = grad_output[entry] * slope;
        grad_bias[static_cast<std::size_t>(f)] += gradient;
        for_each_term(n, argmax[entry], [&](int64_t position, int64_t channel, int64_t tap) {
            grad_weight[weight_index(f, channel, tap)] +=
                gradient * input[input_index(n, position, channel)];
            grad_input[static_cast<std::size_t>((n * shape.length + position) * shape.channels +
                                                channel)] +=
                gradient * weight[weight_index(f, channel, tap)];
        });
    }
};

// Runs a problem in type T through forward(call) and backward(call).
template <class T, class Forward, class Backward>
void run_case(const Problem& exact, Forward&& run_forward, Backward&& run_backward,
              double tolerance = (is_sixteen_bit<T> ? 2 : 32) * epsilon<T>()) {
    const ConvolutionShape& s = exact.shape;
    std::vector<T> input = converted<T>(exact.input);
    if (!exact.lengths.empty()) {
        // What stands beyond a length must not be read.
        for (int64_t n = 0; n < s.batch; ++n) {
            for (int64_t p = exact.lengths[static_cast<std::size_t>(n)]; p < s.length; ++p) {
                for (int64_t c = 0; c < s.channels; ++c) {
                    input[exact.input_index(n, p, c)] = rounded_to<T>(NAN);
                }
            }
        }
    }
    const std::vector<T> weight = converted<T>(exact.weight);
    const std::vector<T> bias = converted<T>(exact.bias);
    const std::vector<T> grad_output = converted<T>(exact.grad_output);
    std::vector<T> output(grad_output.size()), grad_input(exact.grad_input.size()),
        grad_weight(exact.grad_weight.size()), grad_bias(exact.grad_bias.size());
    std::vector<int32_t> argmax(grad_output.size());
    const SequenceView view =
        exact.channels_first ? SequenceView{input.data(), s.channels * s.length, 1, s.length}
                             : SequenceView{input.data(), s.length * s.channels, s.channels, 1};
    const ConvolutionWeight weights{weight.data(), s.channels * s.kernel_size, s.kernel_size, 1};

    ConvolutionForward<T> forward{};
    forward.shape = s;
    forward.input = view;
    forward.weight = weights;
    forward.bias = bias.data();
    forward.lengths = exact.lengths.empty() ? nullptr : exact.lengths.data();
    forward.output = output.data();
    forward.output_stride_batch = s.pooled * s.filters;
    forward.output_stride_pooled = s.filters;
    forward.output_stride_filter = 1;
    forward.argmax = argmax.data();
    run_forward(forward);

    // The backward starts from the exact winners: rounding may decide a near tie the other way.
    ConvolutionBackward<T> backward{};
    backward.shape = s;
    backward.input = view;
    backward.weight = weights;
    backward.lengths = forward.lengths;
    backward.grad_output = grad_output.data();
    backward.output = output.data();
    backward.grad_output_stride_batch = backward.output_stride_batch = s.pooled * s.filters;
    backward.grad_output_stride_pooled = backward.output_stride_pooled = s.filters;
    backward.grad_output_stride_filter = backward.output_stride_filter = 1;
    backward.argmax = exact.argmax.data();
    backward.grad_input = grad_input.data();
    backward.grad_weight = grad_weight.data();
    backward.grad_bias = grad_bias.data();
    run_backward(backward);

    CHECK(relative_error(output, exact.output) <= tolerance);
    CHECK(relative_error(grad_input, exact.grad_input) <= tolerance);
    CHECK(relative_error(grad_weight, exact.grad_weight) <= tolerance);
    CHECK(relative_error(grad_bias, exact.grad_bias) <= tolerance);
    if (std::is_same_v<T, double>) CHECK(argmax == exact.argmax);
}

}  // namespace seqkernels::testing
