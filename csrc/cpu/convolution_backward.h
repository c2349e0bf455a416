// Gradients of convolution, bias, activation and max-pooling.
//
// Only the winning window of a (sample, pool, filter) has a gradient,
//   g[n, p, f]          = grad_output[n, p, f] * activation'(output[n, p, f])
// and with s = argmax[n, p, f] stride - padding the first position of that window,
//   grad_bias[f]       += g[n, p, f]
//   grad_weight[f,j,c] += g[n, p, f] input[n, s + j dilation, c]
//   grad_input[n, s + j dilation, c] += g[n, p, f] weight[f, c, j]
// over taps j that fall on real positions; all else is exactly zero.
//
// Shapes, strides and ownership: ConvolutionBackward in kernels.h. No output aliases an input.
// Scratch, owned by the call: g, N P F; the weights with channels side by side, F k C; for each
// thread a list of one filter's windows in a block of samples; and where the input's channels do
// not lie side by side, a packed copy of a block: as many samples as 1 MiB holds, at least one.
//
// grad_input is shared out by samples and grad_weight by filters, so that no two threads write one
// address and every sum has one order: the same bits on every run, without atomics. (One sample's
// grad_input is one thread's work.)
//
// Cost: 4 N P F k C FLOPs. Bytes, from cache: a window read for each of grad_weight's terms; a row
// of weights read and a window read and written for each of grad_input's: about one load or store
// for each multiply-add. Limit: L1 and L2 bandwidth.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "activation.h"
#include "convolution_input.h"
#include "product.h"

namespace seqkernels {

template <class Vector>
class ConvolutionBackwardKernel {
    using T = typename Vector::Element;

 public:
    explicit ConvolutionBackwardKernel(const ConvolutionBackward<T>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          window_elements_(checked_product({shape_.kernel_size, shape_.channels})),
          direct_(arguments.input.stride_channel == 1 || shape_.channels <= 1),
          samples_per_block_(samples_per_block()) {}

    void run(int threads) {
        const int64_t entries = checked_product({shape_.batch, shape_.pooled});
        const Scratch<T> gradients(checked_product({entries, shape_.filters}));
        const bool needs_input = call_.grad_input != nullptr;
        const bool needs_weight = call_.grad_weight != nullptr;
        const Scratch<T> weight(needs_input ? checked_product({shape_.filters, window_elements_})
                                            : 0);
        const Scratch<T> packed(
            needs_weight && !direct_
                ? checked_product({samples_per_block_, shape_.length, shape_.channels})
                : 0);
        const int64_t terms_per_thread = checked_product({samples_per_block_, shape_.pooled});
        const Scratch<Term> terms(needs_weight ? checked_product({terms_per_thread, threads}) : 0);
        gradients_ = gradients.data();
        weight_ = weight.data();
        packed_ = packed.data();

        Barrier barrier;
        run_parallel(threads, [&](int thread, int granted) {
            activation_gradients(part_of(shape_.batch, 1, thread, granted));
            const Range filters = part_of(shape_.filters, 1, thread, granted);
            if (needs_input) pack_weight(filters);
            barrier.wait(granted);
            if (needs_input) {
                const Range samples = part_of(shape_.batch, 1, thread, granted);
                for (int64_t n = samples.begin; n < samples.end; ++n) input_gradient(n);
            }
            if (call_.grad_bias != nullptr) bias_gradient(filters);
            if (needs_weight) {
                weight_gradient(filters, terms.data() + thread * terms_per_thread, thread, granted,
                                barrier);
            }
        });
    }

 private:
    // One term of a filter's weight gradient: the gradient, and the window it scales.
    struct Term {
        const T* window;
        T gradient;
    };

    int64_t samples_per_block() const {
        constexpr int64_t block_bytes = 1 << 20;
        const int64_t sample_bytes =
            larger(1, checked_product({shape_.length, shape_.channels, int64_t(sizeof(T))}));
        return larger(1, smaller(shape_.batch, block_bytes / sample_bytes));
    }

    int64_t entry(int64_t n, int64_t pool) const {
        return (n * shape_.pooled + pool) * shape_.filters;
    }

    // g of the samples in range.
    void activation_gradients(Range samples) const {
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            for (int64_t pool = 0; pool < shape_.pooled; ++pool) {
                const T* grad = call_.grad_output + n * call_.grad_output_stride_batch +
                                pool * call_.grad_output_stride_pooled;
                const T* output = call_.output + n * call_.output_stride_batch +
                                  pool * call_.output_stride_pooled;
                for (int64_t f = 0; f < shape_.filters; ++f) {
                    gradients_[entry(n, pool) + f] = activation_gradient(
                        shape_.activation, grad[f * call_.grad_output_stride_filter],
                        output[f * call_.output_stride_filter]);
                }
            }
        }
    }

    // The weights as (F, k, C).
    void pack_weight(Range filters) const {
        const ConvolutionWeight<T>& weight = call_.weight;
        for (int64_t f = filters.begin; f < filters.end; ++f) {
            T* target = weight_ + f * window_elements_;
            for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
                const T* source = weight.data + f * weight.stride_filter + tap * weight.stride_tap;
                for (int64_t channel = 0; channel < shape_.channels; ++channel) {
                    *target++ = source[channel * weight.stride_channel];
                }
            }
        }
    }

    // Whether a window's positions all are real and lie side by side.
    bool is_one_run(int64_t start, int64_t length, bool dense) const {
        return dense && shape_.dilation == 1 && start >= 0 && start + shape_.kernel_size <= length;
    }

    void input_gradient(int64_t n) const {
        const int64_t channels = shape_.channels;
        T* gradient = call_.grad_input + n * shape_.length * channels;
        std::memset(gradient, 0, static_cast<std::size_t>(shape_.length * channels) * sizeof(T));
        const int64_t length = sample_length(shape_, call_.lengths, n);
        for (int64_t pool = 0; pool < shape_.pooled; ++pool) {
            for (int64_t f = 0; f < shape_.filters; ++f) {
                const int32_t window = call_.argmax[entry(n, pool) + f];
                if (window < 0) continue;
                const T scale = gradients_[entry(n, pool) + f];
                const T* weight = weight_ + f * window_elements_;
                const int64_t start = window_start(shape_, window);
                if (is_one_run(start, length, true)) {
                    add_scaled(gradient + start * channels, scale, weight, window_elements_);
                    continue;
                }
                for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
                    const int64_t position = start + tap * shape_.dilation;
                    if (position < 0 || position >= length) continue;
                    add_scaled(gradient + position * channels, scale, weight + tap * channels,
                               channels);
                }
            }
        }
    }

    void bias_gradient(Range filters) const {
        for (int64_t f = filters.begin; f < filters.end; ++f) {
            T sum = 0;
            for (int64_t row = 0; row < shape_.batch * shape_.pooled; ++row) {
                if (call_.argmax[row * shape_.filters + f] >= 0) {
                    sum += gradients_[row * shape_.filters + f];
                }
            }
            call_.grad_bias[f] = sum;
        }
    }

    // The weight gradient of a thread's filters, block of samples after block of samples.
    void weight_gradient(Range filters, Term* terms, int thread, int threads,
                         Barrier& barrier) const {
        std::memset(
            call_.grad_weight + filters.begin * window_elements_, 0,
            static_cast<std::size_t>((filters.end - filters.begin) * window_elements_) * sizeof(T));
        for (int64_t begin = 0; begin < shape_.batch; begin += samples_per_block_) {
            const int64_t end = smaller(shape_.batch, begin + samples_per_block_);
            if (!direct_) {
                const Range mine = part_of(end - begin, 1, thread, threads);
                for (int64_t n = begin + mine.begin; n < begin + mine.end; ++n) {
                    pack_positions(shape_, call_.input, n, 0,
                                   sample_length(shape_, call_.lengths, n),
                                   packed_ + (n - begin) * shape_.length * shape_.channels);
                }
                barrier.wait(threads);
            }
            for (int64_t f = filters.begin; f < filters.end; ++f) {
                add_block(f, begin, end, terms);
            }
            if (!direct_) barrier.wait(threads);
        }
    }

    SampleRows<T> sample_rows(int64_t n, int64_t block_begin) const {
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const SequenceView<T>& input = call_.input;
        if (direct_) return {input.data + n * input.stride_batch, input.stride_length, length};
        return {packed_ + (n - block_begin) * shape_.length * shape_.channels, shape_.channels,
                length};
    }

    // Adds what samples [begin, end) contribute to filter f's weight gradient: windows that are one
    // run of numbers together, so that their sum stays in registers, the others tap by tap.
    void add_block(int64_t f, int64_t begin, int64_t end, Term* terms) const {
        T* gradient = call_.grad_weight + f * window_elements_;
        int64_t count = 0;
        for (int64_t n = begin; n < end; ++n) {
            const SampleRows<T> rows = sample_rows(n, begin);
            const bool dense = rows.dense(shape_.channels);
            for (int64_t pool = 0; pool < shape_.pooled; ++pool) {
                const int32_t window = call_.argmax[entry(n, pool) + f];
                if (window < 0) continue;
                const T scale = gradients_[entry(n, pool) + f];
                const int64_t start = window_start(shape_, window);
                if (is_one_run(start, rows.length, dense)) {
                    terms[count++] = {rows.at(start), scale};
                    continue;
                }
                for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
                    const int64_t position = start + tap * shape_.dilation;
                    if (!rows.has(position)) continue;
                    add_scaled(gradient + tap * shape_.channels, scale, rows.at(position),
                               shape_.channels);
                }
            }
        }
        add_terms(gradient, terms, count);
    }

    // gradient += sum of term.gradient * term.window, column block by column block.
    void add_terms(T* gradient, const Term* terms, int64_t count) const {
        constexpr int vectors = 8;
        constexpr int64_t width = vectors * Vector::width;
        int64_t column = 0;
        for (; column + width <= window_elements_; column += width) {
            Vector sums[vectors];
            for (int v = 0; v < vectors; ++v) {
                sums[v] = Vector::load(gradient + column + v * Vector::width);
            }
            for (int64_t term = 0; term < count; ++term) {
                const Vector scale = Vector::broadcast(terms[term].gradient);
                const T* window = terms[term].window + column;
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v) {
                    sums[v] =
                        multiply_add(scale, Vector::load(window + v * Vector::width), sums[v]);
                }
            }
            for (int v = 0; v < vectors; ++v) {
                sums[v].store(gradient + column + v * Vector::width);
            }
        }
        for (; column < window_elements_; column += Vector::width) {
            const int64_t left = window_elements_ - column;
            Vector sum = load_up_to<Vector>(gradient + column, left);
            for (int64_t term = 0; term < count; ++term) {
                sum = multiply_add(Vector::broadcast(terms[term].gradient),
                                   load_up_to<Vector>(terms[term].window + column, left), sum);
            }
            store_up_to(sum, gradient + column, left);
        }
    }

    // target += scale * source
    static void add_scaled(T* target, T scale, const T* source, int64_t count) {
        const Vector factor = Vector::broadcast(scale);
        int64_t i = 0;
        for (; i + Vector::width <= count; i += Vector::width) {
            multiply_add(factor, Vector::load(source + i), Vector::load(target + i))
                .store(target + i);
        }
        if (i < count) {
            multiply_add(factor, Vector::load_first(source + i, count - i),
                         Vector::load_first(target + i, count - i))
                .store_first(target + i, count - i);
        }
    }

    const ConvolutionBackward<T>& call_;
    const ConvolutionShape& shape_;
    const int64_t window_elements_;
    const bool direct_;
    const int64_t samples_per_block_;
    T* gradients_ = nullptr;
    T* weight_ = nullptr;
    T* packed_ = nullptr;
};

template <class Vector>
void convolution_backward(const ConvolutionBackward<typename Vector::Element>& arguments,
                          int threads) {
    ConvolutionBackwardKernel<Vector>(arguments).run(threads);
}

}  // namespace seqkernels
