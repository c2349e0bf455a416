// The convolution's definition, a thread an element: the baseline that the tiled kernels are checked
// against, and what serves float64.
//
//   output[n, p, f] = activation(bias[f] + max over windows w of pool p of
//                                sum over taps j, channels c of
//                                weight[f, c, j] input[n, w stride + j dilation - padding, c])
//
// and its gradients as csrc/cpu/convolution_backward.h has them, from
//   gradients (N, P, F), grad_output before the activation, and winners (N, P, F), argmax where it is
//   a window of its pool, else -1: scratch of the caller.
//
// Cost: forward 2 N W F k C FLOPs, each with two loads that only the caches spare memory: some
// hundredths of the multiply-add rate. weight: 2 N P F k C; input: N L C P F tests, of which N P F k C
// multiply and add (windows of distant pools are passed over).
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
                    if (position < 0 || position >= length) continue;
                    const T* from = input + sample * call.input.stride_batch +
                                    position * call.input.stride_length;
                    const T* row =
                        weight + filter * call.weight.stride_filter + tap * call.weight.stride_tap;
                    for (int64_t channel = 0; channel < shape.channels; ++channel) {
                        sum += widened(from[channel * call.input.stride_channel]) *
                               widened(row[channel * call.weight.stride_channel]);
                    }
                }
                winner.follow(sum, static_cast<int32_t>(window));
            }
        }
        store_winner(call, sample, pool, filter, winner);
    }
}

// gradients and winners, as above.
template <class T>
__global__ void activation_gradients(ConvolutionBackward<T> call, Accumulator<T>* gradients,
                                     int32_t* winners) {
    const ConvolutionShape& shape = call.shape;
    const int64_t outputs = shape.batch * shape.pooled * shape.filters;
    for (int64_t index = thread_in_grid(); index < outputs; index += threads_in_grid()) {
        const int64_t filter = index % shape.filters;
        const int64_t pool = index / shape.filters % shape.pooled;
        const int64_t sample = index / shape.filters / shape.pooled;
        const int64_t windows = shape.windows(sample_length(shape, call.lengths, sample));
        const bool is_pool = pool < shape.pools(windows);
        const int32_t window = call.argmax[index];
        const bool has_won = is_pool && windows_of_pool(shape, pool, windows).has(window);
        winners[index] = has_won ? window : -1;
        const T grad = call.grad_output[sample * call.grad_output_stride_batch +
                                        pool * call.grad_output_stride_pooled +
                                        filter * call.grad_output_stride_filter];
        const T output = call.output[sample * call.output_stride_batch +
                                     pool * call.output_stride_pooled +
                                     filter * call.output_stride_filter];
        gradients[index] = has_won ? activation_gradient(shape.activation, widened(grad),
                                                         widened(output))
                                   : Accumulator<T>(0);
    }
}

template <class T>
__global__ void simple_bias_gradient(ConvolutionBackward<T> call, const Accumulator<T>* gradients) {
    const ConvolutionShape& shape = call.shape;
    for (int64_t filter = thread_in_grid(); filter < shape.filters; filter += threads_in_grid()) {
        Accumulator<T> sum = 0;
        for (int64_t row = 0; row < shape.batch * shape.pooled; ++row) {
            sum += gradients[row * shape.filters + filter];
        }
        call.grad_bias[filter] = narrowed<T>(sum);
    }
}

template <class T>
__global__ void simple_weight_gradient(ConvolutionBackward<T> call,
                                       const Accumulator<T>* gradients, const int32_t* winners) {
    const ConvolutionShape& shape = call.shape;
    const T* input = static_cast<const T*>(call.input.numbers.data);
    const int64_t weights = shape.filters * shape.kernel_size * shape.channels;
    for (int64_t index = thread_in_grid(); index < weights; index += threads_in_grid()) {
        const int64_t channel = index % shape.channels;
        const int64_t tap = index / shape.channels % shape.kernel_size;
        const int64_t filter = index / shape.channels / shape.kernel_size;
        Accumulator<T> sum = 0;
        for (int64_t sample = 0; sample < shape.batch; ++sample) {
            const int64_t length = sample_length(shape, call.lengths, sample);
            for (int64_t pool = 0; pool < shape.pooled; ++pool) {
                const int64_t entry = (sample * shape.pooled + pool) * shape.filters + filter;
                if (winners[entry] < 0) continue;
                const int64_t position =
                    window_start(shape, winners[entry]) + tap * shape.dilation;
                if (position < 0 || position >= length) continue;
                sum += gradients[entry] * widened(input[sample * call.input.stride_batch +
                                                        position * call.input.stride_length +
                                                        channel * call.input.stride_channel]);
            }
        }
        call.grad_weight[index] = narrowed<T>(sum);
    }
}

// The pools of which a window may cover a position.
__device__ inline Range pools_over(const ConvolutionShape& shape, int64_t first_position,
                                   int64_t last_position) {
    if (shape.pool_size == 0) return {0, shape.pooled};
    const int64_t reach = shape.dilation * (shape.kernel_size - 1);
    const int64_t first = first_position + shape.padding_left - reach;
    const int64_t first_window = first <= 0 ? 0 : divide_rounding_up(first, shape.stride);
    const int64_t last_window = (last_position + shape.padding_left) / shape.stride;
    const int64_t before = first_window - shape.pool_size + 1;
    return {before <= 0 ? 0 : divide_rounding_up(before, shape.pool_stride),
            smaller(shape.pooled, last_window / shape.pool_stride + 1)};
}

template <class T>
__global__ void simple_input_gradient(ConvolutionBackward<T> call,
                                      const Accumulator<T>* gradients, const int32_t* winners) {
    const ConvolutionShape& shape = call.shape;
    const T* weight = static_cast<const T*>(call.weight.numbers.data);
    const int64_t elements = shape.batch * shape.length * shape.channels;
    for (int64_t index = thread_in_grid(); index < elements; index += threads_in_grid()) {
        const int64_t channel = index % shape.channels;
        const int64_t position = index / shape.channels % shape.length;
        const int64_t sample = index / shape.channels / shape.length;
        Accumulator<T> sum = 0;
        if (position < sample_length(shape, call.lengths, sample)) {
            const Range pools = pools_over(shape, position, position);
            for (int64_t row = pools.begin; row < pools.end; ++row) {
                for (int64_t filter = 0; filter < shape.filters; ++filter) {
                    const int64_t entry = (sample * shape.pooled + row) * shape.filters + filter;
                    if (winners[entry] < 0) continue;
                    const int64_t offset = position - window_start(shape, winners[entry]);
                    const int64_t tap = offset / shape.dilation;
                    if (offset < 0 || tap >= shape.kernel_size || tap * shape.dilation != offset) {
                        continue;
                    }
                    sum += gradients[entry] * widened(weight[filter * call.weight.stride_filter +
                                                             tap * call.weight.stride_tap +
                                                             channel * call.weight.stride_channel]);
                }
            }
        }
        call.grad_input[index] = narrowed<T>(sum);
    }
}

}  // namespace seqkernels::cuda
