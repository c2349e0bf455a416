// The gradient of the input that several convolutions share, all pooled over time: Kim's bank.
//
// Sums, shapes and cost: convolution_over_time_input_gradient.h; g: convolution_backward.h. Samples
// are shared out among the threads.
//
// Scratch, owned by the call: g of a sample, F of each convolution, for each thread; and that of
// the sums.
//
// Measured, in turns (family 6, model 207, two threads, C 300, three times 100 filters, of 3, 4 and
// 5): 50 sentences of 56 words 0.63 to 0.68 ms, where one convolution after the other takes 0.70 to
// 0.76, and to add up what they leave 0.24 more; of 20 words 0.58, 0.57 and 0.06. With what calls
// cost from Python a step of training, forward and backward, takes 0.78 to 0.83 of the time of one
// convolution after the other, in bfloat16 0.84.
#pragma once

#include <cstdint>

#include "../core/checked.h"
#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_over_time_input_gradient.h"
#include "winner_gradients.h"

namespace seqkernels {

// Into the grad_input of the first; nothing where that is null. All have the same input and
// lengths.
template <class Vector, class Number = typename Vector::Element>
void convolution_bank_input_gradient(const ConvolutionBackward<Number>* calls, int64_t count,
                                     int threads) {
    if (calls[0].grad_input == nullptr) return;
    using T = typename Vector::Element;
    int64_t filters = 0;
    for (int64_t i = 0; i < count; ++i) filters = checked_sum(filters, calls[i].shape.filters);
    const Scratch<T> gradients(checked_product({filters, threads}));
    const OverTimeInputGradient<Vector, Number> input(calls, count, threads);
    Barrier barrier;
    run_parallel(threads, [&](int thread, int granted) {
        input.prepare(thread, granted);
        barrier.wait(granted);
        const Range samples = part_of(calls[0].shape.batch, 1, thread, granted);
        T* const own = gradients.data() + thread * filters;
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            T* target = own;
            for (int64_t i = 0; i < count; ++i) {
                const Range all{0, calls[i].shape.filters};
                WinnerGradients<Vector, Number>(calls[i]).of_sample(n, all, target);
                target += all.end;
            }
            input.run(n, own, thread);
        }
    });
}

}  // namespace seqkernels
