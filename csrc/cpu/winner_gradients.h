// The gradients that the backward of a convolution begins with: of each pool's winning window,
//   g[n, p, f] = grad_output[n, p, f] * activation'(output[n, p, f])
// in the type that is computed in; zero where argmax is not a window of its pool.
#pragma once

#include <cstdint>

#include "activation.h"
#include "convolution_input.h"
#include "product.h"

namespace seqkernels {

template <class Vector, class Number>
class WinnerGradients {
    using T = typename Vector::Element;

 public:
    explicit WinnerGradients(const ConvolutionBackward<Number>& call)
        : call_(call), shape_(call.shape) {}

    // Some filters of a sample, (P, filters) contiguous.
    void of_sample(int64_t n, Range filters, T* target) const {
        of_pools(n, {0, shape_.pooled}, filters, target);
    }

    // The same of some pools, (pools, filters).
    void of_pools(int64_t n, Range pools, Range filters, T* target) const {
        const Pooled grad_output{call_.grad_output + n * call_.grad_output_stride_batch,
                                 call_.grad_output_stride_pooled, call_.grad_output_stride_filter};
        const Pooled output{call_.output + n * call_.output_stride_batch,
                            call_.output_stride_pooled, call_.output_stride_filter};
        const bool are_rows = grad_output.stride_filter == 1 && output.stride_filter == 1;
        if (!are_rows) gradients_in_turns(grad_output, output, pools, filters, target);
        const int64_t windows = shape_.windows(sample_length(shape_, call_.lengths, n));
        const int64_t count = filters.end - filters.begin;
        for (int64_t pool = pools.begin; pool < pools.end; ++pool, target += count) {
            if (are_rows) {
                gradients_of_row(grad_output.row(pool) + filters.begin,
                                 output.row(pool) + filters.begin, count, target);
            }
            const Range own = windows_of_pool(shape_, pool, windows);  // 32 bits hold it
            const auto begin = static_cast<int32_t>(own.begin), end = static_cast<int32_t>(own.end);
            const int32_t* argmax =
                call_.argmax + (n * shape_.pooled + pool) * shape_.filters + filters.begin;
            for (int64_t f = 0; f < count; ++f) {
                target[f] = (argmax[f] >= begin) & (argmax[f] < end) ? target[f] : T(0);
            }
        }
    }

 private:
    // A sample's pooled numbers.
    struct Pooled {
        const Number* numbers;
        int64_t stride_pooled;
        int64_t stride_filter;

        const Number* row(int64_t pool) const { return numbers + pool * stride_pooled; }
    };

    // Before the activation, filters side by side.
    void gradients_of_row(const Number* grad_output, const Number* output, int64_t count,
                          T* target) const {
        const auto of_vector = [&](int64_t f, int64_t here) __attribute__((always_inline)) {
            Vector gradient = load_up_to<Vector>(grad_output + f, here);
            if (shape_.activation != Activation::identity) {
                gradient = gradient_before(shape_.activation, gradient,
                                           load_up_to<Vector>(output + f, here));
            }
            store_up_to(gradient, target + f, here);
        };
        const int64_t whole = count / Vector::width * Vector::width;
        for (int64_t f = 0; f < whole; f += Vector::width) of_vector(f, Vector::width);
        if (whole < count) of_vector(whole, count - whole);
    }

    // The same of some pools, whichever way they lie.
    void gradients_in_turns(const Pooled& grad_output, const Pooled& output, Range pools,
                            Range filters, T* target) const {
        for_each_pooled(grad_output, pools, filters,
                        [&](Vector gradient, int64_t place, int64_t count) {
                            store_up_to(gradient, target + place, count);
                        });
        if (shape_.activation == Activation::identity) return;
        for_each_pooled(output, pools, filters, [&](Vector y, int64_t place, int64_t count) {
            const Vector gradient = load_up_to<Vector>(target + place, count);
            store_up_to(gradient_before(shape_.activation, gradient, y), target + place, count);
        });
    }

    // Calls function(vector, place, count) for a sample's pooled numbers, `place` being where in a
    // contiguous (pools, filters) they belong.
    template <class Function>
    void for_each_pooled(const Pooled& pooled, Range pools, Range filters,
                         Function&& function) const {
        ConvolutionShape rows = shape_;
        rows.channels = filters.end - filters.begin;
        const Number* source = pooled.row(pools.begin) + filters.begin * pooled.stride_filter;
        read_positions<Vector>(
            rows, {source, 0, pooled.stride_pooled, pooled.stride_filter}, source, pools.count(),
            rows.channels,
            [&](const Number* run, int64_t offset, int64_t count, int64_t) {
                for (int64_t i = 0; i < count; i += Vector::width) {
                    function(load_up_to<Vector>(run + i, count - i), offset + i, count - i);
                }
            },
            [&](Vector numbers, int64_t offset, int64_t count, int64_t) {
                function(numbers, offset, count);
            });
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
};

}  // namespace seqkernels
