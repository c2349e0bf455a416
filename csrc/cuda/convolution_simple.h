// The convolution's definition, a thread an element: the baseline that the tiled kernels are
// checked against, and what serves float64.
//
//   output[n, p, f] = activation(bias[f] + max over windows w of pool p of
//                                sum over taps j, channels c of
//                                weight[f, c, j] input[n, w stride + j dilation - padding, c])
//
// and its gradients as csrc/cpu/convolution_backward.h has them.
//
// Shapes, strides and ownership: csrc/core/convolution.h. No scratch.
//
// Cost: forward 2 N W F k C FLOPs, each with two loads that only the caches spare memory: some
// hundredths of the multiply-add rate. weight: N P F k C, and as many looks at argmax; input: N L C
// P F looks, of which N P F k C multiply and add (windows of distant pools are passed over).
#pragma once

#include "convolution_rules.h"

namespace seqkernels::cuda {

template <class T>
__global__ void simple_forward(ConvolutionForward<T> call) {
    const ConvolutionShape& shape = call.shape;
    const T* input = static_cast<const T*>(call.input.numbers.data);
    const T* weight = static_cast<const T*>(call.weight.numbers.data);
    const int64_t outputs = shape.batch * shape.pooled * shape.filters;
    for (int64_t index = thread_in_grid(); index < outputs; index += threads_in_grid()) {
        const int64_t filter = index % shape.filters;
        const int64_t pool = index / shape.filters % shape.pooled;
        const int64_t sample = index / shape.filters / shape.pooled;
        const int64_t length = sample_length(shape, call.lengths, sample);
        const int64_t windows = shape.windows(length);
        Winner<Accumulator<T>> winner;
        if (pool < shape.pools(windows)) {
            const Range own = windows_of_pool(shape, pool, windows);
            for (int64_t window = own.begin; window < own.end; ++window) {
                Accumulator<T> sum = 0;
                for (int64_t tap = 0; tap < shape.kernel_size; ++tap) {
                    const int64_t position = window_start(shape, window) + tap * shape.dilation;
                    const bool is_real = position >= 0 && position < length;
                    const T* from = input + sample * call.input.stride_batch +
                                    position * call.input.stride_length;
                    const T* row =
                        weight + filter * call.weight.stride_filter + tap * call.weight.stride_tap;
                    for (int64_t channel = 0; channel < shape.channels; ++channel) {
                        // Padding counts: zero times an infinite weight is NaN.
                        const Accumulator<T> number =
                            is_real ? widened(from[channel * call.input.stride_channel]) : 0;
                        sum += number * widened(row[channel * call.weight.stride_channel]);
                    }
                }
                winner.follow(sum, static_cast<int32_t>(window));
            }
        }
        store_winner(call, sample, pool, filter, winner);
    }
}

template <class T>
__global__ void simple_bias_gradient(ConvolutionBackward<T> call) {
    const ConvolutionShape& shape = call.shape;
    for (int64_t filter = thread_in_grid(); filter < shape.filters; filter += threads_in_grid()) {
        Accumulator<T> sum = 0;
        for (int64_t sample = 0; sample < shape.batch; ++sample) {
            const int64_t windows = shape.windows(sample_length(shape, call.lengths, sample));
            for (int64_t pool = 0; pool < shape.pooled; ++pool) {
                sum += PoolGradient<T>(call, windows, sample, pool, filter).gradient;
            }
        }
        call.grad_bias[filter] = narrowed<T>(sum);
    }
}

template <class T>
__global__ void simple_weight_gradient(ConvolutionBackward<T> call) {
    const ConvolutionShape& shape = call.shape;
    const T* input = static_cast<const T*>(call.input.numbers.data);
    const int64_t weights = shape.filters * shape.kernel_size * shape.channels;
    for (int64_t index = thread_in_grid(); index < weights; index += threads_in_grid()) {
        const int64_t tap = index % shape.kernel_size;
        const int64_t channel = index / shape.kernel_size % shape.channels;
        const int64_t filter = index / shape.kernel_size / shape.channels;
        Accumulator<T> sum = 0;
        for (int64_t sample = 0; sample < shape.batch; ++sample) {
            const int64_t length = sample_length(shape, call.lengths, sample);
            const int64_t windows = shape.windows(length);
            for (int64_t pool = 0; pool < shape.pooled; ++pool) {
                const PoolGradient<T> own(call, windows, sample, pool, filter);
                if (own.window < 0) continue;
                const int64_t position = window_start(shape, own.window) + tap * shape.dilation;
                if (position < 0 || position >= length) continue;
                sum += own.gradient * widened(input[sample * call.input.stride_batch +
                                                    position * call.input.stride_length +
                                                    channel * call.input.stride_channel]);
            }
        }
        call.grad_weight[index] = narrowed<T>(sum);
    }
}

template <class T>
__global__ void simple_input_gradient(ConvolutionBackward<T> call) {
    const ConvolutionShape& shape = call.shape;
    const T* weight = static_cast<const T*>(call.weight.numbers.data);
    const int64_t elements = shape.batch * shape.length * shape.channels;
    for (int64_t index = thread_in_grid(); index < elements; index += threads_in_grid()) {
        const int64_t channel = index % shape.channels;
        const int64_t position = index / shape.channels % shape.length;
        const int64_t sample = index / shape.channels / shape.length;
        const int64_t length = sample_length(shape, call.lengths, sample);
        const int64_t windows = shape.windows(length);
        Accumulator<T> sum = 0;
        const Range pools = position < length ? pools_over(shape, position, position) : Range{0, 0};
        for (int64_t pool = pools.begin; pool < pools.end; ++pool) {
            for (int64_t filter = 0; filter < shape.filters; ++filter) {
                const PoolGradient<T> own(call, windows, sample, pool, filter);
                if (own.window < 0) continue;
                const int64_t offset = position - window_start(shape, own.window);
                const int64_t tap = offset / shape.dilation;
                if (offset < 0 || tap >= shape.kernel_size || tap * shape.dilation != offset) {
                    continue;
                }
                sum +=
                    own.gradient *
                    widened(
                        weight[filter * call.weight.stride_filter + tap * call.weight.stride_tap +
                               channel * call.weight.stride_channel]);
            }
        }
        call.grad_input[index] = narrowed<T>(sum);
    }
}

}  // namespace seqkernels::cuda
