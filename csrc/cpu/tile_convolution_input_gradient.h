// The input's part of convolution_backward.h with small pools, in tiles, as a dense product:
//
//   grad_input[n, p, c] = sum over taps j, filters f of g[n, p + padding - j, f] weight[f, c, j]
//
// itself a convolution, of the gradient g of every window, zero where a window did not win, with
// k - 1 zeros around it. For strides and dilations of 1, and pools that do not overlap. It does
// pool_stride times the multiply-adds of convolution_input_gradient.h, which visits winners alone,
// but many more a second.
//
// A sample whose g is too large or not finite, and all where a weight is not plain
// (tile_product.h), are left to that.
//
// Scratch, owned by the call: the weights as they are multiplied; for each thread g of the windows
// of one sample, as it is multiplied.
// Cost: 2 N L F k C FLOPs. Limit: as tile_product.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../core/scratch.h"
#include "convolution_input.h"
#include "tile_planes.h"
#include "tile_product.h"

namespace seqkernels {

template <class Unit, int planes, class Number>
class TileConvolutionInputGradient {
    using Product = TileProduct<Unit, planes>;
    using Vector = typename Product::Vector;
    using T = typename Product::T;
    using Left = typename Product::Left;

 public:
    TileConvolutionInputGradient(const ConvolutionBackward<Number>& arguments, int threads)
        : call_(arguments),
          shape_(arguments.shape),
          layout_{shape_.channels, shape_.kernel_size * shape_.filters, Product::vectors, 1},
          plane_(checked_product(
                     {shape_.length + shape_.kernel_size - 1 + Product::rows, shape_.filters}) +
                 TileConfiguration::depth),
          packed_(wanted() ? Product::packed_elements(layout_) : 0),
          panels_(wanted() ? checked_product({Product::pack_scratch_elements(layout_), threads})
                           : 0),
          left_(wanted() ? checked_product({plane_, planes, threads}) : 0),
          offsets_(Product::blocks(layout_.depth)),
          left_out_(wanted() ? shape_.batch : 0) {
        for (int64_t b = 0; b < Product::blocks(layout_.depth); ++b) {
            offsets_.data()[b] = b * TileConfiguration::depth;
        }
        for (int64_t n = 0; wanted() && n < shape_.batch; ++n) left_out_.data()[n] = 0;
    }

    bool wanted() const { return call_.grad_input != nullptr; }

    // A thread's part of the weights: before any call of run.
    void prepare(int thread, int threads) const {
        if (!wanted()) return;
        const ConvolutionWeight& weight = call_.weight;
        const int64_t taps = shape_.kernel_size, filters = shape_.filters;
        const Range panels = part_of(layout_.panels(), 1, thread, threads);
        T* scratch = panels_.data() + thread * Product::pack_scratch_elements(layout_);
        const bool are_plain =
            Product::pack(packed_.data(), layout_, panels, scratch, [&](T* target, int64_t panel) {
                for (int64_t j = 0; j < taps; ++j) {
                    pack_panel(target, layout_, panel, filters,
                               {weight.numbers.from((taps - 1 - j) * weight.stride_tap),
                                weight.stride_channel, weight.stride_filter},
                               [&](int64_t filter) { return j * filters + filter; });
                }
            });
        if (!are_plain) all_left_out_ = true;
    }

    // One sample, by one of the threads; gradients: its g, (P, F).
    void run(int64_t n, const T* gradients, int thread) const {
        if (!wanted() || all_left_out_) return;
        const T scale = scale_of(gradients);
        left_out_.data()[n] = scale == T(0);
        if (scale == T(0)) return;
        Left* left = left_.data() + thread * planes * plane_;
        lay_out(n, gradients, scale, left);
        multiply(n, T(1) / scale, left);
    }

    // Calls function(samples) for those that are left to others, after all threads have run.
    template <class Function>
    void for_each_left_out(Function&& function) const {
        if (!wanted()) return;
        for_each_marked(left_out_.data(), shape_.batch, all_left_out_, function);
    }

 private:
    // What g of a sample is to be multiplied with so that it can be cut into planes; 0: it cannot.
    T scale_of(const T* gradients) const {
        TileMagnitude magnitude;
        const int64_t numbers = shape_.pooled * shape_.filters;
        for (int64_t i = 0; i < numbers; i += Vector::width) {
            magnitude.take(load_up_to<Vector>(gradients + i, numbers - i));
        }
        const bool is_as_it_is = !Product::cuts && TileMagnitude::is_finite(magnitude.bits());
        return is_as_it_is ? T(1) : magnitude.scale();
    }

    // Row i of the left operand is g of window i + first_window().
    int64_t first_window() const { return shape_.padding_left - (shape_.kernel_size - 1); }

    // g of a sample's windows, and zeros around them.
    void lay_out(int64_t n, const T* gradients, T scale, Left* left) const {
        const int64_t filters = shape_.filters;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t rows = length + shape_.kernel_size - 1;
        const auto clear = [&](int64_t begin, int64_t end) {
            const int64_t from = larger(0, begin - first_window()) * filters;
            const int64_t to = smaller(rows, end - first_window()) * filters;
            for (int p = 0; p < planes && from < to; ++p) {
                std::memset(static_cast<void*>(left + p * plane_ + from), 0,
                            static_cast<std::size_t>(to - from) * sizeof(Left));
            }
        };
        int64_t covered = 0;  // windows so far
        clear(first_window(), covered);
        const int64_t windows = shape_.windows(length), pools = shape_.pools(windows);
        for (int64_t pool = 0; pool < pools; ++pool) {
            const Range own = windows_of_pool(shape_, pool, windows);
            clear(covered, own.begin);
            lay_out_pool(call_.argmax + (n * shape_.pooled + pool) * filters,
                         gradients + pool * filters, own, rows, scale, left);
            covered = own.end;
        }
        clear(covered, rows + first_window());
        for (int p = 0; p < planes; ++p) {  // what the last row's last depths reach
            std::memset(static_cast<void*>(left + p * plane_ + rows * filters), 0,
                        TileConfiguration::depth * sizeof(Left));
        }
    }

    void lay_out_pool(const int32_t* argmax, const T* gradients, Range own, int64_t rows, T scale,
                      Left* left) const {
        const Vector factor = Vector::broadcast(scale);
        for (int64_t f = 0; f < shape_.filters; f += Vector::width) {
            const __mmask16 there = Vector::first(shape_.filters - f);
            const __m512i winners = _mm512_maskz_loadu_epi32(there, argmax + f);
            const Vector numbers{_mm512_maskz_loadu_ps(there, gradients + f)};
            __m256i cut[planes];
            cut_into_planes((numbers * factor).value, cut);
            for (int64_t window = own.begin; window < own.end; ++window) {
                const int64_t row = window - first_window();
                if (row < 0 || row >= rows) continue;
                const __mmask16 wins = _mm512_cmpeq_epi32_mask(
                    winners, _mm512_set1_epi32(static_cast<int32_t>(window)));
                for (int p = 0; p < planes; ++p) {
                    _mm256_mask_storeu_epi16(left + p * plane_ + row * shape_.filters + f, there,
                                             _mm256_maskz_mov_epi16(wins, cut[p]));
                }
            }
        }
    }

    void multiply(int64_t n, T inverse, const Left* left) const {
        const int64_t channels = shape_.channels, filters = shape_.filters;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        Number* target = call_.grad_input + n * shape_.length * channels;
        std::memset(static_cast<void*>(target + length * channels), 0,
                    static_cast<std::size_t>((shape_.length - length) * channels) * sizeof(Number));
        const Vector factor = Vector::broadcast(inverse);
        [[maybe_unused]] const typename Product::Session session{};
        for (int64_t panel = 0; panel < layout_.panels(); ++panel) {
            const auto* weights = Product::panel(packed_.data(), layout_, panel);
            const int64_t units = layout_.units_of(panel);
            Product::for_each_tile(length, [&](int64_t begin, int tile) {
                Vector sums[Product::rows * Product::vectors];
                Product::multiply(sums, tile, units, left + begin * filters, filters, plane_,
                                  offsets_.data(), weights, layout_.depth);
                for (int m = 0; m < tile; ++m) {
                    for (int64_t u = 0; u < units; ++u) {
                        const int64_t c = layout_.first_column(panel) + u * Vector::width;
                        store_up_to(sums[m * units + u] * factor,
                                    target + (begin + m) * channels + c, channels - c);
                    }
                }
            });
        }
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const PanelLayout<Vector> layout_;  // columns: channels; depth: k F
    const int64_t plane_;
    const Scratch<typename Product::Packed> packed_;
    const Scratch<T> panels_;
    const Scratch<Left> left_;
    const Scratch<int64_t> offsets_;
    const Scratch<uint8_t> left_out_;
    mutable std::atomic<bool> all_left_out_{false};
};

}  // namespace seqkernels
