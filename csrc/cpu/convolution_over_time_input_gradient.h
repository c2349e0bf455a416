// The input's part of convolution_backward.h, pooled over time, of one convolution or of several
// that read the same input (a bank): grad_input of position after position.
//
// A window wins few filters, and a filter one window. So the winners of a sample are sorted by
// where their windows start, what a position is given by the windows that cover it is summed in
// registers,
//   grad_input[p, .. C) = sum over convolutions, taps j, filters f won by the window whose tap j is
//                             at p of g[f] weight[f, j, .. C)
// and written once, whether anything won there or not. The sum of each convolution is added to
// those of the ones behind it, as autograd adds gradients: the bits are the same, but of 16-bit
// numbers, which are rounded once. Starts that are a whole number of dilations apart are neighbours
// in that order: the winners whose windows cover a position then follow each other, and the place
// of their tap's weights differs from position to position by the same number.
//
// Scratch, owned by the call: the weights, F k C of each convolution, rows of whole vectors; for
// each thread the sorted winners of a sample, where those of each start begin, and the lists of one
// position.
//
// Cost: 2 N F k C FLOPs. Limit: L2, from which a filter's weights come once a sample.
//
// Tried without gain: to ask, for writing, for the position 4 or 12 further on (0 to 10 % slower),
// 1 or 2 (within 2 %); bfloat16's weights as they are stored, widened as they are read (within the
// noise).
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/checked.h"
#include "../core/scratch.h"
#include "convolution_input.h"
#include "scaled_rows.h"
#include "tap_order.h"

namespace seqkernels {

template <class Vector, class Number>
class OverTimeInputGradient {
    using T = typename Vector::Element;

 public:
    // Of one convolution; or of `count`, with the input, the lengths and the grad_input of the
    // first. Without a grad_input nothing is computed.
    OverTimeInputGradient(const ConvolutionBackward<Number>& call, int threads)
        : OverTimeInputGradient(&call, 1, threads) {}
    OverTimeInputGradient(const ConvolutionBackward<Number>* calls, int64_t count, int threads)
        : first_(calls[0]),
          channels_(calls[0].shape.channels),
          pitch_(divide_rounding_up(channels_, Vector::width) * Vector::width),
          count_(calls[0].grad_input == nullptr ? 0 : count),
          members_(count_),
          sums_(members_of(calls)),
          weight_(sums_.weights),
          winners_(checked_product({sums_.filters, threads})),
          begins_(checked_product({sums_.begins, threads})),
          lists_apart_(divide_rounding_up(count_, 8) * 8),
          lists_(checked_product({lists_apart_, threads})) {}

    // A thread's part of the weights: before any call of run.
    void prepare(int thread, int threads) const {
        for (int64_t i = 0; i < count_; ++i) prepare(members_.data()[i], thread, threads);
    }

    // Samples that are left to others: none.
    template <class Function>
    void for_each_left_out(Function&&) const {}

    // One sample, by one of the threads; gradients: its g, (F,), convolution after convolution.
    void run(int64_t n, const T* gradients, int thread) const {
        if (count_ == 0) return;
        const ConvolutionShape& shape = first_.shape;
        const int64_t length = sample_length(shape, first_.lengths, n);
        Winner* const winners = winners_.data() + thread * sums_.filters;
        int64_t* const begins = begins_.data() + thread * sums_.begins;
        ScaledRows<T>* const lists = lists_.data() + thread * lists_apart_;
        for (int64_t i = 0; i < count_; ++i) {
            const Member& member = members_.data()[i];
            member.sort_winners(n, length, gradients + member.first_filter,
                                winners + member.first_filter, begins + member.first_begin);
        }
        Number* target = first_.grad_input + n * shape.length * channels_;
        for (int64_t position = 0; position < length; ++position, target += channels_) {
            int64_t filled = 0;
            for (int64_t i = count_ - 1; i >= 0; --i) {
                const Member& member = members_.data()[i];
                lists[filled] = member.covering(position, winners + member.first_filter,
                                                begins + member.first_begin);
                filled += lists[filled].count > 0;
            }
            if (filled == 0) {
                clear(target, channels_);
            } else {
                add_scaled_rows<Vector, false, true>(target, channels_, weight_.data(), lists,
                                                     filled);
            }
        }
        clear(target, (shape.length - length) * channels_);
    }

 private:
    // Its offset: of the filter's weights of the tap at position 0, or where that would be.
    using Winner = ScaledRow<T>;

    // One convolution, and where its part of the scratch begins.
    struct Member {
        const ConvolutionBackward<Number>* call;
        int64_t pitch;            // of a tap's weights
        int64_t starts_in_class;  // of one remainder by the dilation
        int64_t places;           // of starts, in their order
        int64_t first_weight;     // (F, k, pitch), zeros beyond the channels
        int64_t first_filter;
        int64_t first_begin;

        const ConvolutionShape& shape() const { return call->shape; }
        int64_t filter_numbers() const { return shape().kernel_size * pitch; }

        // A start's place in the order: those of the same remainder follow each other.
        int64_t place(int64_t start) const {
            const int64_t dilation = shape().dilation;
            return dilation == 1 ? start : start % dilation * starts_in_class + start / dilation;
        }

        // Sorts a sample's winners by the place of their start, those of one by filter; those of
        // place i begin at begins[i].
        void sort_winners(int64_t n, int64_t length, const T* gradients, Winner* winners,
                          int64_t* begins) const {
            const int64_t filters = shape().filters, stride = shape().stride;
            const int32_t* argmax = call->argmax + n * filters;
            const Range own{0, shape().windows(length)};
            std::memset(begins, 0, static_cast<std::size_t>(places + 2) * sizeof(int64_t));
            for (int64_t f = 0; f < filters; ++f) {
                if (own.has(argmax[f])) ++begins[place(argmax[f] * stride) + 2];
            }
            for (int64_t i = 2; i < places + 2; ++i) begins[i] += begins[i - 1];
            // While winners find their places, begins[i + 1] moves on to the end of place i's.
            for (int64_t f = 0; f < filters; ++f) {
                if (!own.has(argmax[f])) continue;
                const int64_t start = argmax[f] * stride;
                winners[begins[place(start) + 1]++] = {
                    first_weight + f * filter_numbers() - start / shape().dilation * pitch,
                    gradients[f]};
            }
        }

        // The winners whose windows cover a position.
        ScaledRows<T> covering(int64_t position, const Winner* winners,
                               const int64_t* begins) const {
            // The last tap's window starts here, the first one's some dilations before.
            const int64_t start = position + shape().padding_left;
            const int64_t last = place(start), step = start / shape().dilation;
            const int64_t first = last - smaller(step, shape().kernel_size - 1);
            return {winners + begins[first], begins[last + 1] - begins[first], step * pitch};
        }
    };

    // Of all members.
    struct Sums {
        int64_t weights;
        int64_t filters;
        int64_t begins;
    };

    Sums members_of(const ConvolutionBackward<Number>* calls) const {
        Sums sums{};
        for (int64_t i = 0; i < count_; ++i) {
            const ConvolutionShape& shape = calls[i].shape;
            // Where windows may start, and more: every position, padding included.
            const int64_t starts = shape.padding_left + shape.length + shape.padding_right;
            const int64_t in_class = divide_rounding_up(starts, shape.dilation);
            const int64_t places = smaller(shape.dilation, starts) * in_class;
            members_.data()[i] = {&calls[i],    pitch_,       in_class,   places,
                                  sums.weights, sums.filters, sums.begins};
            sums.weights = checked_sum(sums.weights,
                                       checked_product({shape.filters, shape.kernel_size, pitch_}));
            sums.filters = checked_sum(sums.filters, shape.filters);
            sums.begins += places + 2;
        }
        return sums;
    }

    void prepare(const Member& member, int thread, int threads) const {
        const ConvolutionWeight& weight = member.call->weight;
        const Range filters = part_of(member.shape().filters, 1, thread, threads);
        const int64_t taps = member.shape().kernel_size;
        with_numbers<T>(weight.numbers, [&](const auto* numbers) {
            for (int64_t f = filters.begin; f < filters.end; ++f) {
                T* target = weight_.data() + member.first_weight + f * member.filter_numbers();
                for (int64_t tap = 0; tap < taps; ++tap) {
                    for (int64_t c = channels_; c < pitch_; ++c) target[tap * pitch_ + c] = T(0);
                }
                const auto* filter = numbers + f * weight.stride_filter;
                filter_by_taps<Vector>(weight, filter, taps, channels_, target, pitch_);
            }
        });
    }

    static void clear(Number* target, int64_t count) {
        std::memset(static_cast<void*>(target), 0,
                    static_cast<std::size_t>(count) * sizeof(Number));
    }

    const ConvolutionBackward<Number>& first_;
    const int64_t channels_;
    const int64_t pitch_;
    const int64_t count_;
    const Scratch<Member> members_;
    const Sums sums_;
    const Scratch<T> weight_;
    const Scratch<Winner> winners_;
    const Scratch<int64_t> begins_;
    const int64_t lists_apart_;  // of threads: whole cache lines
    const Scratch<ScaledRows<T>> lists_;
};

}  // namespace seqkernels
