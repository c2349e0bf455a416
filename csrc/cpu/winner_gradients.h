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
        for_each_pooled(call_.grad_output + n * call_.grad_output_stride_batch,
                        call_.grad_output_stride_pooled, call_.grad_output_stride_filter, filters,
                        [&](Vector gradient, int64_t place, int64_t count) {
                            store_up_to(gradient, target + place, count);
                        });
        if (shape_.activation != Activation::identity) {
            for_each_pooled(call_.output + n * call_.output_stride_batch,
                            call_.output_stride_pooled, call_.output_stride_filter, filters,
                            [&](Vector y, int64_t place, int64_t count) {
                                const Vector gradient = load_up_to<Vector>(target + place, count);
                                store_up_to(gradient_before(shape_.activation, gradient, y),
                                            target + place, count);
                            });
        }
        const int64_t windows = shape_.windows(sample_length(shape_, call_.lengths, n));
        const int64_t count = filters.end - filters.begin;
        for (int64_t pool = 0; pool < shape_.pooled; ++pool, target += count) {
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
    // Calls function(vector, place, count) for a sample's pooled numbers, `place` being where in a
    // contiguous (P, filters) they belong.
    template <class Function>
    void for_each_pooled(const Number* source, int64_t stride_pooled, int64_t stride_filter,
                         Range filters, Function&& function) const {
        ConvolutionShape rows = shape_;
        rows.channels = filters.end - filters.begin;
        source += filters.begin * stride_filter;
        read_positions<Vector>(
            rows, {source, 0, stride_pooled, stride_filter}, source, shape_.pooled, rows.channels,
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
