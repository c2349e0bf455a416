// Gradients of convolution, bias, activation and max-pooling.
//
// Only the winning window of a (sample, pool, filter) has a gradient,
//   g[n, p, f]          = grad_output[n, p, f] * activation'(output[n, p, f])
// and with s = argmax[n, p, f] stride - padding the first position of that window,
//   grad_bias[f]       += g[n, p, f]
//   grad_weight[f,j,c] += g[n, p, f] input[n, s + j dilation, c]
//   grad_input[n, s + j dilation, c] += g[n, p, f] weight[f, c, j]
// over taps j that fall on real positions; all else is exactly zero. An argmax that is not a window
// of its pool counts as none.
//
// Shapes, strides and ownership: ConvolutionBackward in kernels.h. No output aliases an input.
// Scratch, owned by the call: g, N P F; and that of the two parts, convolution_input_gradient.h and
// convolution_weight_gradient.h.
//
// grad_input is shared out by samples and grad_weight by filters, so that no two threads write one
// address and every sum has one order: the same bits on every run, without atomics. (One sample's
// grad_input is one thread's work.)
//
// Cost: 4 N P F k C FLOPs, 1 / pool_size of the dense gradients', and one load from L1 for each
// multiply-add. Limit: two loads a cycle, with pools of 2 and more; over time, where a window wins
// few filters, reading and writing its gradient, and L2.
#pragma once

#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "activation.h"
#include "convolution_input_gradient.h"
#include "convolution_weight_gradient.h"
#include "product.h"

namespace seqkernels {

template <class Vector, class InputGradient, class WindowsGradient>
class ConvolutionBackwardKernel;

template <class Vector>
using ByWinners = ConvolutionBackwardKernel<Vector, ConvolutionInputGradient<Vector>,
                                            ConvolutionWeightGradient<Vector>>;

template <class Vector, class InputGradient, class WindowsGradient>
class ConvolutionBackwardKernel {
    using T = typename Vector::Element;

 public:
    explicit ConvolutionBackwardKernel(const ConvolutionBackward<T>& arguments)
        : call_(arguments), shape_(arguments.shape) {}

    void run(int threads) {
        const Scratch<T> gradients(checked_product({shape_.batch, shape_.pooled, shape_.filters}));
        gradients_ = gradients.data();
        const InputGradient input(call_, gradients_, threads);
        const WindowsGradient weight(call_, gradients_, threads);

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            activation_gradients(part_of(shape_.batch, 1, thread, granted));
            input.prepare(thread, granted);
            barrier.wait(granted);
            input.run(thread, granted);
            if (call_.grad_bias != nullptr) {
                bias_gradient(part_of(shape_.filters, Vector::width, thread, granted));
            }
            weight.run(thread, granted, barrier);
        });
        input.for_each_left_out([&](Range samples) {
            ConvolutionBackward<T> part = samples_of(samples);
            ByWinners<Vector>(part).run(threads);
        });
    }

 private:
    // The input's gradient of some samples.
    ConvolutionBackward<T> samples_of(Range samples) const {
        const int64_t first = samples.begin;
        ConvolutionBackward<T> part = call_;
        part.shape.batch = samples.end - first;
        part.input.numbers = call_.input.numbers.from(first * call_.input.stride_batch);
        if (call_.lengths != nullptr) part.lengths += first;
        part.grad_output += first * call_.grad_output_stride_batch;
        part.output += first * call_.output_stride_batch;
        part.argmax += first * shape_.pooled * shape_.filters;
        part.grad_input += first * shape_.length * shape_.channels;
        part.grad_weight = nullptr;
        part.grad_bias = nullptr;
        return part;
    }

    // g of the samples in range, zero where no window won.
    void activation_gradients(Range samples) const {
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            const int64_t windows = shape_.windows(sample_length(shape_, call_.lengths, n));
            for (int64_t pool = 0; pool < shape_.pooled; ++pool) {
                const Range own = windows_of_pool(shape_, pool, windows);
                const T* grad = call_.grad_output + n * call_.grad_output_stride_batch +
                                pool * call_.grad_output_stride_pooled;
                const T* output = call_.output + n * call_.output_stride_batch +
                                  pool * call_.output_stride_pooled;
                const int64_t entry = (n * shape_.pooled + pool) * shape_.filters;
                for (int64_t f = 0; f < shape_.filters; ++f) {
                    const int64_t window = call_.argmax[entry + f];
                    gradients_[entry + f] =
                        own.has(window)
                            ? activation_gradient(shape_.activation,
                                                  grad[f * call_.grad_output_stride_filter],
                                                  output[f * call_.output_stride_filter])
                            : T(0);
                }
            }
        }
    }

    void bias_gradient(Range filters) const {
        T* sums = call_.grad_bias;
        for (int64_t f = filters.begin; f < filters.end; ++f) sums[f] = 0;
        for (int64_t row = 0; row < shape_.batch * shape_.pooled; ++row) {
            const T* gradients = gradients_ + row * shape_.filters;
            for (int64_t f = filters.begin; f < filters.end; ++f) sums[f] += gradients[f];
        }
    }

    const ConvolutionBackward<T>& call_;
    const ConvolutionShape& shape_;
    T* gradients_ = nullptr;
};

template <class Vector>
void convolution_backward(const ConvolutionBackward<typename Vector::Element>& arguments,
                          int threads) {
    ByWinners<Vector>(arguments).run(threads);
}

}  // namespace seqkernels
