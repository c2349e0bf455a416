// The input's part of convolution_backward.h with small pools, by vectors of float32, as a dense
// product:
//
//   grad_input[n, p, c] = sum over taps j, filters f of g[n, p + padding - j, f] weight[f, c, j]
//
// itself a convolution, of the gradient g of every window, zero where a window won no pool, with
// k - 1 zeros around it: neighbours are multiplied together (winograd_windows.h). For strides and
// dilations of 1. It does pool_stride times the multiply-adds of convolution_input_gradient.h,
// which visits winners alone, less what windows together save, but many more a second.
//
// Positions that no window with a gradient covers get exact zeros. Samples whose g cannot be
// multiplied so go window by window; where a weight cannot, all is left to that. Errors, root mean
// square to float64, against that: normal numbers 0.8 to 1.3 times as large, positive ones 0.5 to
// 0.9 (C and F 64 to 300, k 2 to 7).
//
// Scratch, owned by the call: g of as many samples as 4 MiB hold, at least one; for each thread g
// of a sample's pools; of 16-bit numbers their sums; and that of the convolution.
// Cost: 2 N L F k C FLOPs, or as many less as windows together save. Limit: the multiply-add rate.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_forward.h"
#include "convolution_input.h"
#include "window_gradients.h"

namespace seqkernels {

template <class Vector, class Number>
class WinogradInputGradient {
    using T = typename Vector::Element;

 public:
    explicit WinogradInputGradient(const ConvolutionBackward<Number>& call)
        : call_(call),
          shape_(call.shape),
          gradients_(call),
          windows_(shape_.windows(shape_.length)),
          samples_(samples_at_once(shape_)),
          numbers_(checked_product({samples_, windows_, shape_.filters})),
          sums_(is_target ? 0 : checked_product({samples_, shape_.length, shape_.channels})),
          lengths_(samples_) {}

    // Whether it is faster so. Measured, times faster than winner by winner, two threads (AMD
    // family 26, AVX-512; AVX2), k 3 to 7, C 64 to 300, F 64 to 256:
    //   pools of 1: 2.1; 1.9. Of 2: 1.23 to 1.41 (C 70, F 64, k 7: 1.0); 1.05 to 1.18 (0.97).
    //   Of 3 (k 3): 0.98; 0.83
    static bool pays_for(const ConvolutionShape& shape) {
        constexpr int64_t largest_pool_stride = Vector::width > 1 ? 2 : 1;
        const int64_t most_padding = larger(shape.padding_left, shape.padding_right);
        return shape.pool_stride <= largest_pool_stride && shape.pool_size <= largest_dense_pool &&
               most_padding < shape.kernel_size && shape.windows(shape.length) > 0 &&
               WinogradPlan::pays_for(shape_of_gradient(shape));
    }

    // Returns whether the weights can be multiplied so; if not, nothing of use is computed.
    bool run(int threads) const {
        const int64_t pool_elements = gradients_.scratch_elements(windows_);
        const Scratch<T> pools(checked_product({pool_elements, threads}));
        for (int64_t begin = 0; begin < shape_.batch; begin += samples_) {
            const Range samples{begin, smaller(shape_.batch, begin + samples_)};
            run_parallel(threads, [&](int thread, int granted) {
                const Range mine = part_of(samples.count(), 1, thread, granted);
                for (int64_t i = mine.begin; i < mine.end; ++i) {
                    lengths_.data()[i] = gradients_.windows(begin + i);
                    gradients_.of_windows(begin + i, {0, lengths_.data()[i]}, gradients_of(i),
                                          pools.data() + thread * pool_elements);
                }
            });
            if (!convolve(samples, threads)) return false;
            run_parallel(threads, [&](int thread, int granted) {
                const Range mine = part_of(samples.count(), 1, thread, granted);
                for (int64_t i = mine.begin; i < mine.end; ++i) finish(begin + i, i);
            });
        }
        return true;
    }

 private:
    // Whether sums are made where they belong.
    static constexpr bool is_target = std::is_same_v<T, Number>;

    // The convolution of g: from filters to channels.
    static ConvolutionShape shape_of_gradient(const ConvolutionShape& shape) {
        ConvolutionShape result = shape;
        result.length = shape.windows(shape.length);
        result.channels = shape.filters;
        result.filters = shape.channels;
        result.padding_left = shape.kernel_size - 1 - shape.padding_left;
        result.padding_right = shape.kernel_size - 1 - shape.padding_right;
        result.pool_size = 1;
        result.pool_stride = 1;
        result.pooled = shape.length;
        result.activation = Activation::identity;
        return result;
    }

    static int64_t samples_at_once(const ConvolutionShape& shape) {
        constexpr int64_t most_bytes = int64_t{4} << 20;
        const int64_t numbers = checked_product(
            {shape.windows(shape.length), shape.filters, static_cast<int64_t>(sizeof(T))});
        return larger(1, smaller(shape.batch, most_bytes / larger(1, numbers)));
    }

    T* gradients_of(int64_t i) const { return numbers_.data() + i * windows_ * shape_.filters; }

    bool convolve(Range samples, int threads) const {
        const ConvolutionWeight& weight = call_.weight;
        ConvolutionForward<T> call{};
        call.shape = shape_of_gradient(shape_);
        call.shape.batch = samples.count();
        call.input = {numbers_.data(), windows_ * shape_.filters, shape_.filters, 1};
        call.weight = {weight.numbers.from((shape_.kernel_size - 1) * weight.stride_tap),
                       weight.stride_channel, weight.stride_filter, -weight.stride_tap};
        call.lengths = lengths_.data();
        call.output_stride_batch = shape_.length * shape_.channels;
        call.output_stride_pooled = shape_.channels;
        call.output_stride_filter = 1;
        call.output = sums_from(samples.begin);
        return ConvolutionForwardKernel<WinogradWindows<Vector>>(call).run_if_plain(threads, true);
    }

    // Where the sums of samples from the n'th on are made.
    T* sums_from([[maybe_unused]] int64_t n) const {
        if constexpr (is_target) {
            return call_.grad_input + n * shape_.length * shape_.channels;
        } else {
            return sums_.data();
        }
    }

    // Zeros where neighbours left a trace, in the type wanted.
    void finish(int64_t n, int64_t i) const {
        const int64_t channels = shape_.channels, taps = shape_.kernel_size;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t numbers = shape_.length * channels;
        T* const sums = sums_from(n - i) + i * numbers;
        int64_t next = 0, last = -taps;  // the windows before `next` with a gradient: the last one
        for (int64_t position = 0; position < length; ++position) {
            for (; next < lengths_.data()[i] && next <= position + shape_.padding_left; ++next) {
                if (has_gradient(gradients_of(i) + next * shape_.filters)) last = next;
            }
            if (last + taps <= position + shape_.padding_left) {
                std::memset(sums + position * channels, 0,
                            static_cast<std::size_t>(channels) * sizeof(T));
            }
        }
        if constexpr (!is_target) {
            convert_numbers<Vector>(sums, call_.grad_input + n * numbers, numbers);
        }
    }

    bool has_gradient(const T* of_window) const {
        Vector largest = Vector::broadcast(0);
        for (int64_t f = 0; f < shape_.filters; f += Vector::width) {
            largest =
                larger_magnitude(load_up_to<Vector>(of_window + f, shape_.filters - f), largest);
        }
        return has_nan(largest) || has_any<Vector>(exceeds(largest, Vector::broadcast(0)));
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const WindowGradients<Vector, Number> gradients_;
    const int64_t windows_;
    const int64_t samples_;
    const Scratch<T> numbers_;  // g, (samples, windows, F)
    const Scratch<T> sums_;     // (samples, L, C) where numbers are of 16 bits
    const Scratch<int64_t> lengths_;
};

}  // namespace seqkernels
