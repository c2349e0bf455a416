// The input's part of convolution_backward.h, pooled over time: grad_input of position after
// position.
//
// A window wins few filters, and a filter one window. So the winners of a sample are sorted by
// their window, and what a position is given by the windows that cover it is summed in registers:
//   grad_input[p, .. C) = sum over taps j, filters f won by the window whose tap j is at p
//                             of g[f] weight[f, j, .. C)
// and written once, whether anything won there or not.
//
// Scratch, owned by the call: the weights, F k C; for each thread the sorted winners of a sample,
// where each window's begin, and the terms of a position.
// Cost: 2 N F k C FLOPs. Limit: L2, from which a filter's weights come once a sample.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/scratch.h"
#include "convolution_input.h"
#include "scaled_rows.h"
#include "tap_order.h"

namespace seqkernels {

template <class Vector, class Number>
class OverTimeInputGradient {
    using T = typename Vector::Element;

 public:
    // Without a grad_input nothing is computed.
    OverTimeInputGradient(const ConvolutionBackward<Number>& arguments, int threads)
        : call_(arguments),
          shape_(arguments.shape),
          windows_(shape_.windows(shape_.length)),
          pitch_(divide_rounding_up(shape_.channels, Vector::width) * Vector::width),
          weight_(wanted() ? checked_product({shape_.filters, shape_.kernel_size, pitch_}) : 0),
          winners_(wanted() ? checked_product({shape_.filters, threads}) : 0),
          begins_(wanted() ? checked_product({windows_ + 2, threads}) : 0),
          terms_(wanted() ? checked_product({shape_.filters, threads}) : 0) {}

    bool wanted() const { return call_.grad_input != nullptr; }

    // A thread's part of the weights: before any call of run.
    void prepare(int thread, int threads) const {
        if (!wanted()) return;
        const ConvolutionWeight& weight = call_.weight;
        const Range filters = part_of(shape_.filters, 1, thread, threads);
        const int64_t taps = shape_.kernel_size, channels = shape_.channels;
        with_numbers<T>(weight.numbers, [&](const auto* numbers) {
            for (int64_t f = filters.begin; f < filters.end; ++f) {
                T* target = weight_.data() + f * filter_numbers();
                const auto* filter = numbers + f * weight.stride_filter;
                if (weight.stride_tap == 1 && weight.stride_channel == taps) {
                    by_taps<Vector>(filter, taps, channels, target, pitch_);
                    continue;
                }
                for (int64_t tap = 0; tap < taps; ++tap) {
                    const auto* from = filter + tap * weight.stride_tap;
                    for (int64_t c = 0; c < channels; ++c) {
                        target[tap * pitch_ + c] = widen(from[c * weight.stride_channel]);
                    }
                }
            }
        });
    }

    // Samples that are left to others: none.
    template <class Function>
    void for_each_left_out(Function&&) const {}

    // One sample, by one of the threads; gradients: its g, (F,).
    void run(int64_t n, const T* gradients, int thread) const {
        if (!wanted()) return;
        const int64_t channels = shape_.channels;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t windows = shape_.windows(length);
        Term* winners = winners_.data() + thread * shape_.filters;
        int64_t* begins = begins_.data() + thread * (windows_ + 2);
        Term* terms = terms_.data() + thread * shape_.filters;
        sort_winners(n, gradients, windows, winners, begins);
        Number* target = call_.grad_input + n * shape_.length * channels;
        for (int64_t position = 0; position < length; ++position, target += channels) {
            const int64_t count = terms_of(position, windows, winners, begins, terms);
            if (count == 0) {
                clear(target, channels);
            } else {
                add_scaled_rows<Vector, false, true>(target, channels, weight_.data(), terms,
                                                     count);
            }
        }
        clear(target, (shape_.length - length) * channels);
    }

 private:
    using Term = ScaledRow<T>;  // its offset: of the filter's weights, or of one tap's

    int64_t filter_numbers() const { return shape_.kernel_size * pitch_; }

    static void clear(Number* target, int64_t count) {
        std::memset(static_cast<void*>(target), 0,
                    static_cast<std::size_t>(count) * sizeof(Number));
    }

    // Sorts a sample's winners by window, those of one window by filter; those of window w begin at
    // begins[w].
    void sort_winners(int64_t n, const T* gradients, int64_t windows, Term* winners,
                      int64_t* begins) const {
        const int32_t* argmax = call_.argmax + n * shape_.filters;
        const Range own{0, windows};
        for (int64_t window = 0; window <= windows + 1; ++window) begins[window] = 0;
        for (int64_t f = 0; f < shape_.filters; ++f) {
            if (own.has(argmax[f])) ++begins[argmax[f] + 2];
        }
        for (int64_t window = 2; window <= windows; ++window) begins[window] += begins[window - 1];
        // While winners find their places, begins[w + 1] moves on to the end of window w's.
        for (int64_t f = 0; f < shape_.filters; ++f) {
            if (own.has(argmax[f])) {
                winners[begins[argmax[f] + 1]++] = {f * filter_numbers(), gradients[f]};
            }
        }
    }

    // What a position is given; returns how many terms that are.
    int64_t terms_of(int64_t position, int64_t windows, const Term* winners, const int64_t* begins,
                     Term* terms) const {
        int64_t count = 0;
        for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
            const int64_t start = position + shape_.padding_left - tap * shape_.dilation;
            if (start < 0) break;
            if (shape_.stride != 1 && start % shape_.stride != 0) continue;
            const int64_t window = shape_.stride == 1 ? start : start / shape_.stride;
            if (window >= windows) continue;
            for (int64_t i = begins[window]; i < begins[window + 1]; ++i) {
                terms[count++] = {winners[i].offset + tap * pitch_, winners[i].scale};
            }
        }
        return count;
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const int64_t windows_;
    const int64_t pitch_;
    const Scratch<T> weight_;  // (F, k, C)
    const Scratch<Term> winners_;
    const Scratch<int64_t> begins_;
    const Scratch<Term> terms_;
};

}  // namespace seqkernels
