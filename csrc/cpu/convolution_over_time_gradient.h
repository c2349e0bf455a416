// The input's part of convolution_backward.h, pooled over time: grad_input of position after
// position.
//
// A window wins few filters, and a filter one window. So the winners of a sample are sorted by
// where their windows start, what a position is given by the windows that cover it is summed in
// registers,
//   grad_input[p, .. C) = sum over taps j, filters f won by the window whose tap j is at p
//                             of g[f] weight[f, j, .. C)
// and written once, whether anything won there or not. Starts that are a whole number of dilations
// apart are neighbours in that order: the winners whose windows cover a position then follow each
// other, and the place of their tap's weights differs from position to position by the same number.
//
// Scratch, owned by the call: the weights, F k C, rows of whole vectors; for each thread the sorted
// winners of a sample, and where those of each start begin.
//
// Cost: 2 N F k C FLOPs. Limit: L2, from which a filter's weights come once a sample.
#pragma once

#include <algorithm>
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
          starts_in_class_(divide_rounding_up(starts(), shape_.dilation)),
          places_(smaller(shape_.dilation, starts()) * starts_in_class_),
          pitch_(divide_rounding_up(shape_.channels, Vector::width) * Vector::width),
          weight_(wanted() ? checked_product({shape_.filters, shape_.kernel_size, pitch_}) : 0),
          winners_(wanted() ? checked_product({shape_.filters, threads}) : 0),
          begins_(wanted() ? checked_product({places_ + 2, threads}) : 0) {}

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
                for (int64_t tap = 0; tap < taps; ++tap) {
                    std::fill(target + tap * pitch_ + channels, target + (tap + 1) * pitch_, T(0));
                }
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
        Winner* winners = winners_.data() + thread * shape_.filters;
        int64_t* begins = begins_.data() + thread * (places_ + 2);
        sort_winners(n, gradients, shape_.windows(length), winners, begins);
        Number* target = call_.grad_input + n * shape_.length * channels;
        for (int64_t position = 0; position < length; ++position, target += channels) {
            // The last tap's window starts here, the first one's some dilations before.
            const int64_t start = position + shape_.padding_left;
            const int64_t last = place(start), step = start / shape_.dilation;
            const int64_t first = last - smaller(step, shape_.kernel_size - 1);
            const int64_t begin = begins[first], count = begins[last + 1] - begin;
            if (count == 0) {
                clear(target, channels);
            } else {
                add_scaled_rows<Vector, false, true>(target, channels, weight_.data(),
                                                     winners + begin, count, step * pitch_);
            }
        }
        clear(target, (shape_.length - length) * channels);
    }

 private:
    // Its offset: of the filter's weights of the tap at position 0, or where that would be.
    using Winner = ScaledRow<T>;

    // Where windows may start, and more: every position, padding included.
    int64_t starts() const { return shape_.padding_left + shape_.length + shape_.padding_right; }
    // A start's place in the order: those of the same remainder by the dilation follow each other.
    int64_t place(int64_t start) const {
        return shape_.dilation == 1
                   ? start
                   : start % shape_.dilation * starts_in_class_ + start / shape_.dilation;
    }

    int64_t filter_numbers() const { return shape_.kernel_size * pitch_; }

    static void clear(Number* target, int64_t count) {
        std::memset(static_cast<void*>(target), 0,
                    static_cast<std::size_t>(count) * sizeof(Number));
    }

    // Sorts a sample's winners by the place of their start, those of one by filter; those of place
    // i begin at begins[i].
    void sort_winners(int64_t n, const T* gradients, int64_t windows, Winner* winners,
                      int64_t* begins) const {
        const int32_t* argmax = call_.argmax + n * shape_.filters;
        const Range own{0, windows};
        std::memset(begins, 0, static_cast<std::size_t>(places_ + 2) * sizeof(int64_t));
        for (int64_t f = 0; f < shape_.filters; ++f) {
            if (own.has(argmax[f])) ++begins[place(argmax[f] * shape_.stride) + 2];
        }
        for (int64_t i = 2; i < places_ + 2; ++i) begins[i] += begins[i - 1];
        // While winners find their places, begins[i + 1] moves on to the end of place i's.
        for (int64_t f = 0; f < shape_.filters; ++f) {
            if (!own.has(argmax[f])) continue;
            const int64_t start = argmax[f] * shape_.stride;
            winners[begins[place(start) + 1]++] = {
                f * filter_numbers() - start / shape_.dilation * pitch_, gradients[f]};
        }
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const int64_t starts_in_class_;  // of one remainder
    const int64_t places_;
    const int64_t pitch_;      // of a tap's weights
    const Scratch<T> weight_;  // (F, k, pitch), zeros beyond the channels
    const Scratch<Winner> winners_;
    const Scratch<int64_t> begins_;
};

}  // namespace seqkernels
