// Gradients of convolution, bias, activation and max-pooling.
//
// Only the winning window of a (sample, pool, filter) has a gradient,
//   g[n, p, f]          = grad_output[n, p, f] * activation'(output[n, p, f])
// and with s = argmax[n, p, f] stride - padding the first position of that window,
//   grad_bias[f]       += g[n, p, f]
//   grad_weight[f,c,j] += g[n, p, f] input[n, s + j dilation, c]
//   grad_input[n, s + j dilation, c] += g[n, p, f] weight[f, c, j]
// over taps j that fall on real positions; all else is exactly zero. An argmax that is not a window
// of its pool counts as none.
//
// Shapes, strides and ownership: ConvolutionBackward in kernels.h. No output aliases an input.
//
// With small pools most windows win some filter, and dense products are faster: see
// winograd_input_gradient.h and winograd_weight_gradient.h, with tiles
// tile_convolution_input_gradient.h and tile_convolution_weight_gradient.h.
//
// Convolutions of one input whose gradients are added up: convolution_bank_input_gradient.h.
//
// Scratch, owned by the call: g, N P F; its sums, N F; and that of the two parts:
// convolution_input_gradient.h and convolution_weight_gradient.h, over time
// convolution_over_time_input_gradient.h and, of short sentences,
// convolution_over_time_weight_gradient.h; where the weight's part makes g again, P F for each
// thread.
//
// g, grad_input and the sums of g are shared out by samples, grad_weight by filters (in tiles and
// over time by channels too), so that no two threads write one address and every sum has one order:
// the same bits on every run, without atomics. (One sample's grad_input is one thread's work.)
//
// Cost: 4 N P F k C FLOPs, 1 / pool_size of the dense gradients', and one load from L1 for each
// multiply-add. Limit: two loads a cycle, with pools of 2 and more; over time L2. What one core has
// written takes another long to read, so a thread makes for itself what it can.
//
// Measured, multiply-adds a ns of one core that does 137 in registers (AMD family 26, AVX-512; 50
// to 100 sentences of 20 words, C 300, F 100, k 3): input 37, weight, read where the windows lie,
// 33. A loop alone over rows of L2 in any order: 52 to 63 where they begin cache lines, 36 to 42
// where they do not, as the input's.
//
// Tried without gain: with pools of 2, dense products of windows one by one, which load less for a
// multiply-add but do twice as many (float32, AMD family 26, forward and backward: AVX-512, one
// thread, 1 to 7 % slower; AVX2, two threads, 14 to 19 %).
#pragma once

#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_input_gradient.h"
#include "convolution_over_time_input_gradient.h"
#include "convolution_over_time_weight_gradient.h"
#include "convolution_weight_gradient.h"
#include "product.h"
#include "winner_gradients.h"
#include "winograd_input_gradient.h"
#include "winograd_weight_gradient.h"

namespace seqkernels {

// Winner by winner: of any pools and numbers.
template <class Vector, class Number>
void convolution_backward_by_winners(const ConvolutionBackward<Number>& arguments, int threads);

template <class Vector, class Number, class InputGradient, class WeightGradient>
class ConvolutionBackwardKernel {
    using T = typename Vector::Element;

 public:
    explicit ConvolutionBackwardKernel(const ConvolutionBackward<Number>& arguments)
        : call_(arguments), shape_(arguments.shape) {}

    void run(int threads) {
        if (!call_.grad_input && !call_.grad_weight && !call_.grad_bias) return;
        const int64_t of_sample = checked_product({shape_.pooled, shape_.filters});
        const bool wants_bias = call_.grad_bias != nullptr;
        const Scratch<T> gradients(
            checked_product({WeightGradient::reads_gradients ? shape_.batch : threads, of_sample}));
        const Scratch<T> sums(wants_bias ? checked_product({shape_.batch, shape_.filters}) : 0);
        const WinnerGradients<Vector, Number> winners(call_);
        const InputGradient input(call_, threads);
        const WeightGradient weight(call_, gradients.data(), threads);

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            input.prepare(thread, granted);
            barrier.wait(granted);
            const Range samples = part_of(shape_.batch, 1, thread, granted);
            for (int64_t n = samples.begin; n < samples.end; ++n) {
                T* own =
                    gradients.data() + (WeightGradient::reads_gradients ? n : thread) * of_sample;
                winners.of_sample(n, {0, shape_.filters}, own);
                if (wants_bias) sum_pools(own, sums.data() + n * shape_.filters);
                weight.prepare(n, own);
                input.run(n, own, thread);
            }
            barrier.wait(granted);
            if (wants_bias) {
                bias_gradient(sums.data(), part_of(shape_.filters, Vector::width, thread, granted));
            }
            weight.run(thread, granted, barrier);
        });
        input.for_each_left_out([&](Range samples) {
            const ConvolutionBackward<Number> part = input_gradient_of(samples);
            convolution_backward_by_winners<Vector>(part, threads);
        });
        if (weight.is_left_out()) {
            ConvolutionBackward<Number> part = call_;
            part.grad_input = nullptr;
            part.grad_bias = nullptr;
            convolution_backward_by_winners<Vector>(part, threads);
        }
    }

 private:
    // The input's gradient of some samples.
    ConvolutionBackward<Number> input_gradient_of(Range samples) const {
        const int64_t first = samples.begin;
        ConvolutionBackward<Number> part = call_;
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

    // Sums of a sample's g.
    void sum_pools(const T* gradients, T* sums) const {
        for (int64_t f = 0; f < shape_.filters; ++f) sums[f] = 0;
        for (int64_t pool = 0; pool < shape_.pooled; ++pool, gradients += shape_.filters) {
            for (int64_t f = 0; f < shape_.filters; ++f) sums[f] += gradients[f];
        }
    }

    void bias_gradient(const T* sums, Range filters) const {
        for (int64_t f = filters.begin; f < filters.end; f += Vector::width) {
            const int64_t count = filters.end - f;
            Vector sum = Vector::broadcast(0);
            for (int64_t n = 0; n < shape_.batch; ++n) {
                sum = sum + load_up_to<Vector>(sums + n * shape_.filters + f, count);
            }
            store_up_to(sum, call_.grad_bias + f, count);
        }
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
};

template <class Vector, class Number>
void convolution_backward_by_winners(const ConvolutionBackward<Number>& arguments, int threads) {
    using Kernel =
        ConvolutionBackwardKernel<Vector, Number, ConvolutionInputGradient<Vector, Number>,
                                  ConvolutionWeightGradient<Vector, Number>>;
    Kernel(arguments).run(threads);
}

template <class Vector, class Number, class WeightGradient>
void convolution_backward_over_time(const ConvolutionBackward<Number>& arguments, int threads) {
    using InputGradient = OverTimeInputGradient<Vector, Number>;
    using Kernel = ConvolutionBackwardKernel<Vector, Number, InputGradient, WeightGradient>;
    Kernel(arguments).run(threads);
}

// The gradients of small pools as dense products of windows together, where they are faster so than
// winner by winner; returns the call that is left.
template <class Vector, class Number>
ConvolutionBackward<Number> gradients_together(const ConvolutionBackward<Number>& arguments,
                                               int threads) {
    using InputGradient = WinogradInputGradient<Vector, Number>;
    using WeightGradient = WinogradWeightGradient<Vector, Number>;
    const ConvolutionShape& shape = arguments.shape;
    ConvolutionBackward<Number> left = arguments;
    if (left.grad_input != nullptr && InputGradient::pays_for(shape) &&
        InputGradient(arguments).run(threads)) {
        left.grad_input = nullptr;
    }
    if (left.grad_weight != nullptr && WeightGradient::pays_for(shape) &&
        WeightGradient(arguments, threads).run(threads)) {
        left.grad_weight = nullptr;
    }
    return left;
}

template <class Vector, class Number = typename Vector::Element>
void convolution_backward(const ConvolutionBackward<Number>& arguments, int threads) {
    if (arguments.shape.pool_size == 0) {
        if (OverTimeWeightGradient<Vector, Number>::pays_for(arguments.shape, threads)) {
            convolution_backward_over_time<Vector, Number, OverTimeWeightGradient<Vector, Number>>(
                arguments, threads);
        } else {
            convolution_backward_over_time<Vector, Number,
                                           ConvolutionWeightGradient<Vector, Number>>(arguments,
                                                                                      threads);
        }
    } else if constexpr (std::is_same_v<typename Vector::Element, float>) {
        const ConvolutionBackward<Number> left = gradients_together<Vector>(arguments, threads);
        convolution_backward_by_winners<Vector>(left, threads);
    } else {
        convolution_backward_by_winners<Vector>(arguments, threads);
    }
}

}  // namespace seqkernels
