// Several convolutions of the same input, each pooled over all time: Kim's bank.
//
// One after the other, each shared out among the threads; or, of few windows, side by side, cut by
// filters, each part by one thread: where no filter decides how another is multiplied, so that the
// bits are the same. Then threads meet once, and none reads what another has packed.
//
// Shapes, ownership, scratch and cost: convolution_forward.h. Every part makes the input ready.
//
// Measured, side by side, times over those one after the other, calls of both in turns, two threads
// (AMD family 25, model 17, AVX-512, C 300, three times 100 filters, of 3, 4 and 5): one sentence
// of 7 words 0.88, 20 0.94, 56 0.98, 200 0.89, 512 0.93; 8 of 20 words 0.92. Beyond 512 windows it
// does not pay: 50 of 20 words 1.01, of 56 1.05. In a loop of its own, where the scratch of a call
// is still in the caches of the threads that had it: one of 20 words 0.85, of 56 0.95.
#pragma once

#include <cstdint>
#include <type_traits>

#include "convolution_bank_parts.h"
#include "convolution_forward.h"

namespace seqkernels {

template <class Number, void (*forward)(const ConvolutionForward<Number>&, int)>
void convolution_bank_in_turns(const ConvolutionForward<Number>* calls, int64_t count,
                               int threads) {
    for (int64_t i = 0; i < count; ++i) forward(calls[i], threads);
}

template <class Vector, class Product>
class ConvolutionBankForward {
    using T = typename Vector::Element;
    using Call = ConvolutionForward<T>;

 public:
    // calls: all have the same input and lengths.
    ConvolutionBankForward(const Call* calls, int64_t count, int threads)
        : calls_(calls), count_(count), threads_(threads) {}

    void run() const {
        ConvolutionBankParts parts(threads_);
        if (!can_be_cut() || !share_out(parts)) {
            constexpr auto forward = convolution_forward<Vector, Product>;
            return convolution_bank_in_turns<T, forward>(calls_, count_, threads_);
        }
        parts.run(
            [](const void* context, int64_t call, Range filters) {
                return compute(static_cast<const Call*>(context)[call], filters);
            },
            calls_);
        // Where weights of one filter cannot be multiplied as others are, those of none are.
        for (int64_t i = 0; i < count_; ++i) {
            if (!parts.is_computed(i)) convolution_forward<Vector, Product>(calls_[i], threads_);
        }
    }

 private:
    bool can_be_cut() const {
        if (threads_ == 1 || count_ == 1) return false;
        for (int64_t i = 0; i < count_; ++i) {
            const ConvolutionShape& shape = calls_[i].shape;
            if (!ConvolutionBankParts::takes(shape, calls_[i].argmax != nullptr)) return false;
            if (!are_apart(shape)) return false;
        }
        return true;
    }

    // Returns whether the threads have about as much to do.
    bool share_out(ConvolutionBankParts& parts) const {
        for (int64_t i = 0; i < count_; ++i) {
            const ConvolutionShape& shape = calls_[i].shape;
            parts.add(i, shape.filters, Vector::width, Product::vectors, shape.kernel_size);
        }
        return parts.share_out();
    }

    // Whether no filter's numbers decide how another one is multiplied, but for weights that cannot
    // be multiplied as others are.
    static bool are_apart([[maybe_unused]] const ConvolutionShape& shape) {
        if constexpr (can_be_screened<Product>) {
            return !ScreenedWindows<typename Product::Unit, Product::left_planes>::pays_for(shape);
        } else {
            return true;
        }
    }

    // Some filters of a call, by one thread; they are multiplied as they would be among all.
    static bool compute(const Call& call, Range filters) {
        Call part = call;
        part.shape.filters = filters.count();
        part.weight.numbers = call.weight.numbers.from(filters.begin * call.weight.stride_filter);
        if (call.bias != nullptr) part.bias = call.bias + filters.begin;
        part.output = call.output + filters.begin * call.output_stride_filter;
        if (call.argmax != nullptr) part.argmax = call.argmax + filters.begin;
        return with_windows_of<Vector, Product>(call.shape, [&](auto* windows) {
            using Windows = std::remove_pointer_t<decltype(windows)>;
            return ConvolutionForwardKernel<Windows>(part).run_if_plain(1, false);
        });
    }

    const Call* const calls_;
    const int64_t count_;
    const int threads_;
};

template <class Vector, class Product = VectorProduct<Vector>>
void convolution_bank_forward(const ConvolutionForward<typename Vector::Element>* calls,
                              int64_t count, int threads) {
    ConvolutionBankForward<Vector, Product>(calls, count, threads).run();
}

}  // namespace seqkernels
