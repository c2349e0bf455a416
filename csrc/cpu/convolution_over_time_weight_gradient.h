// The weight's part of convolution_backward.h, pooled over time, where every position is in several
// filters' winning windows: short sentences.
//
// A sample has one winner of each filter, so that
//   grad_weight[f, c, j] = sum over n of g[n, f] input[n, argmax[n, f] stride + j, c]
// reads a number for each that it multiplies, and rows of channels seldom begin cache lines. So the
// positions of a block of samples are copied, of a panel of channels at a time: whole lines, few
// enough to stay in L1, once for all filters and taps. While the samples pass, the sums of a
// filter's taps stay in registers. A winner that is none reads zeros.
//
// Sums have the order that they have in convolution_weight_gradient.h, so that which of the two it
// is, by threads and samples, changes no bit. (With padding it would: there the taps that are not
// on real positions are left out, and the windows that have some come last.)
//
// Scratch, owned by the call: where the winners begin in the copies, N F; for each thread the
// copies, and the sums of a panel, F k panel.
//
// Threads share out the filters of all panels, one after the other; each copies what it needs.
//
// Cost: 2 N F k C FLOPs; a load for each multiply-add, two more for each winner and panel. Limit:
// two loads a cycle.
//
// Measured, time by that of convolution_weight_gradient.h, which reads windows where they lie
// (family 6, model 207, AVX-512, float32, 50 sentences, C 300, F 100; one thread, two):
//   words, taps   20, 2   20, 3   20, 4   20, 5   32, 3   56, 5
//   one            0.65    0.68    0.53    0.51    0.77    0.82
//   two            0.83    0.77    0.73    0.67    0.83    0.96
//
// Tried without gain: panels of one cache line (3 taps 5 to 10 % slower) or of four; blocks of 24
// KiB (as much slower) or 64 (as fast); 56 words of 3 taps (5 to 25 % slower than where they lie),
// also with all panels for a block of samples, so that each is read once (by panels of one line,
// forward and backward: 20 and 56 words, 3 and 5 taps, 0.99 to 1.07 of the time).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/checked.h"
#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_input.h"
#include "product.h"
#include "tap_order.h"

namespace seqkernels {

template <class Vector, class Number>
class OverTimeWeightGradient {
    using T = typename Vector::Element;

 public:
    // Whether it takes the place of convolution_weight_gradient.h, pooled over time: without
    // padding, and where it is faster, by how often a copied position is read, which of several
    // threads that share a panel each copies for itself, and for how many samples a sum stays in
    // registers. (16-bit numbers are half as many bytes there.)
    static bool pays_for(const ConvolutionShape& shape, int threads) {
        constexpr int64_t least_batch = 16;
        constexpr int64_t least_reads = std::is_same_v<Number, T> ? 8 : 10;
        if (Vector::width == 1 || shape.dilation > 1 || shape.padding_left > 0 ||
            shape.padding_right > 0 || shape.batch < least_batch ||
            shape.windows(shape.length) == 0 || shape.length > most_positions) {
            return false;
        }
        const int64_t panels = divide_rounding_up(shape.channels, panel);
        const int64_t sharing = divide_rounding_up(threads, larger(1, panels));
        const int64_t reads = least_reads * shape.length * sharing;
        return shape.filters >= divide_rounding_up(reads, shape.kernel_size);
    }

    // gradients: g, (N, F). Without a grad_weight nothing is computed.
    OverTimeWeightGradient(const ConvolutionBackward<Number>& arguments, const T* gradients,
                           int threads)
        : call_(arguments),
          shape_(arguments.shape),
          gradients_(gradients),
          sample_elements_(shape_.length * panel),
          samples_in_block_(smaller(shape_.batch, most_positions / shape_.length)),
          zeros_(samples_in_block_ * sample_elements_),
          copied_elements_(zeros_ + shape_.kernel_size * panel),
          filter_elements_(shape_.kernel_size * panel),
          starts_(wanted() ? checked_product({shape_.batch, shape_.filters}) : 0),
          copies_(wanted() ? checked_product({copied_elements_, threads}) : 0),
          sums_(wanted() ? checked_product({shape_.filters, filter_elements_, threads}) : 0) {}

    bool wanted() const { return call_.grad_weight != nullptr; }
    // Whether anything is left to others: no.
    static constexpr bool is_left_out() { return false; }

    // Whether g of all samples is to be there when it runs.
    static constexpr bool reads_gradients = true;
    // A sample's winners.
    void prepare(int64_t n, const T*) const {
        if (!wanted()) return;
        // 32 bits hold what a block of copies does.
        const auto windows =
            static_cast<int32_t>(shape_.windows(sample_length(shape_, call_.lengths, n)));
        const auto sample = static_cast<int32_t>(n % samples_in_block_ * sample_elements_);
        const auto step = static_cast<int32_t>(shape_.stride * panel);
        const auto none = static_cast<int32_t>(zeros_);
        const int32_t* argmax = call_.argmax + n * shape_.filters;
        int32_t* starts = starts_.data() + n * shape_.filters;
        for (int64_t f = 0; f < shape_.filters; ++f) {
            const bool has_won = (argmax[f] >= 0) & (argmax[f] < windows);
            const int32_t window = has_won ? argmax[f] : 0;
            starts[f] = has_won ? sample + window * step : none;
        }
    }

    // Called by every thread of a region.
    void run(int thread, int threads, Barrier&) const {
        if (!wanted()) return;
        T* const copies = copies_.data() + thread * copied_elements_;
        T* const sums = sums_.data() + thread * shape_.filters * filter_elements_;
        std::memset(copies + zeros_, 0,
                    static_cast<std::size_t>(copied_elements_ - zeros_) * sizeof(T));
        const int64_t panels = divide_rounding_up(shape_.channels, panel);
        const Range own = part_of(panels * shape_.filters, 1, thread, threads);
        for (int64_t i = own.begin; i < own.end;) {
            const int64_t channel = i / shape_.filters * panel, f = i % shape_.filters;
            const Range filters{f, smaller(shape_.filters, f + own.end - i)};
            run_panel(channel, filters, copies, sums);
            i += filters.count();
        }
    }

 private:
    // Channels: a cache line or two.
    static constexpr int vectors = 2;
    static constexpr int64_t panel = vectors * Vector::width;
    // Of a block: most of an L1 of 48 KiB (of one of 32, some come from L2).
    static constexpr int64_t most_positions = (40 << 10) / (panel * int64_t{sizeof(T)});
    // Vectors of sums in registers, and chains enough to hide most of a multiply-add's latency.
    static constexpr int most_sums = Vector::registers / 2 + 2;
    static constexpr int most_taps = most_sums / vectors;
    static constexpr int enough_chains = 6;

    void run_panel(int64_t channel, Range filters, T* copies, T* sums) const {
        for (int64_t begin = 0; begin < shape_.batch; begin += samples_in_block_) {
            const Range samples{begin, smaller(shape_.batch, begin + samples_in_block_)};
            for (int64_t n = samples.begin; n < samples.end; ++n) {
                copy(n, channel, copies + (n - samples.begin) * sample_elements_);
            }
            add_samples(samples, filters, copies, sums);
        }
        const int64_t channels = smaller(panel, shape_.channels - channel);
        for (int64_t f = filters.begin; f < filters.end; ++f) {
            const int64_t target = (f * shape_.channels + channel) * shape_.kernel_size;
            by_channels<Vector>(sums + f * filter_elements_, panel, shape_.kernel_size, channels,
                                call_.grad_weight + target);
        }
    }

    // A panel's channels of a sample's positions, zeros behind the last channel.
    void copy(int64_t n, int64_t channel, T* target) const {
        const int64_t length = sample_length(shape_, call_.lengths, n);
        ConvolutionShape part = shape_;
        part.channels = smaller(panel, shape_.channels - channel);
        const SequenceView& input = call_.input;
        const int64_t offset = n * input.stride_batch + channel * input.stride_channel;
        with_numbers<T>(input.numbers, [&](const auto* numbers) {
            read_positions<Vector>(
                part, input, numbers + offset, length, panel,
                [&](const auto* run, int64_t place, int64_t count, int64_t room) {
                    for (int64_t i = 0; i < room; i += Vector::width) {
                        load_up_to<Vector>(run + i, count - i).store(target + place + i);
                    }
                },
                [&](Vector columns, int64_t place, int64_t, int64_t room) {
                    columns.store(target + place);
                    for (int64_t i = Vector::width; i < room; i += Vector::width) {
                        Vector::broadcast(0).store(target + place + i);
                    }
                });
        });
    }

    void add_samples(Range samples, Range filters, const T* copies, T* sums) const {
        const int64_t parts = divide_rounding_up(shape_.kernel_size, most_taps);
        for (int64_t i = 0; i < parts; ++i) {
            const Range own = part_of(shape_.kernel_size, 1, i, parts);
            const T* const source = copies + own.begin * panel;
            T* const target = sums + own.begin * panel;
            with_constant<most_taps>(own.count(), [&](auto taps) {
                constexpr int together = (enough_chains + taps * vectors - 1) / (taps * vectors);
                int64_t f = filters.begin;
                for (; f + together <= filters.end; f += together) {
                    add_winners<taps, together>(samples, f, source, target + f * filter_elements_);
                }
                for (; f < filters.end; ++f) {
                    add_winners<taps, 1>(samples, f, source, target + f * filter_elements_);
                }
            });
        }
    }

    // Adds what some taps of some filters are given by a block of samples.
    template <int taps, int filters>
    [[gnu::noinline]] void add_winners(Range samples, int64_t first, const T* copies,
                                       T* target) const {
        constexpr int count = taps * vectors;
        Vector sums[filters][count];
#pragma GCC unroll 8
        for (int f = 0; f < filters; ++f) {
#pragma GCC unroll 32
            for (int i = 0; i < count; ++i) {
                sums[f][i] = samples.begin == 0
                                 ? Vector::broadcast(0)
                                 : Vector::load(target + f * filter_elements_ + i * Vector::width);
            }
        }
        const int32_t* starts = starts_.data() + samples.begin * shape_.filters + first;
        const T* scales = gradients_ + samples.begin * shape_.filters + first;
        for (int64_t n = samples.begin; n < samples.end; ++n) {
#pragma GCC unroll 8
            for (int f = 0; f < filters; ++f) {
                const Vector scale = Vector::broadcast(scales[f]);
                const T* source = copies + starts[f];
#pragma GCC unroll 32
                for (int i = 0; i < count; ++i) {
                    const Vector numbers = Vector::load(source + i * Vector::width);
                    sums[f][i] = multiply_add(scale, numbers, sums[f][i]);
                }
            }
            starts += shape_.filters;
            scales += shape_.filters;
        }
#pragma GCC unroll 8
        for (int f = 0; f < filters; ++f) {
#pragma GCC unroll 32
            for (int i = 0; i < count; ++i) {
                sums[f][i].store(target + f * filter_elements_ + i * Vector::width);
            }
        }
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const T* const gradients_;
    const int64_t sample_elements_;  // of copies
    const int64_t samples_in_block_;
    const int64_t zeros_;  // where they begin, behind the copies
    const int64_t copied_elements_;
    const int64_t filter_elements_;  // of sums
    const Scratch<int32_t> starts_;
    const Scratch<T> copies_;
    const Scratch<T> sums_;
};

}  // namespace seqkernels
