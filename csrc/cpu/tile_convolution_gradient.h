// The gradients of a convolution with small pools, in matrix tiles, as dense products: of the
// gradient g of every window, zero where a window did not win.
//
//   grad_input[n, p, c]  = sum over taps j, filters f of g[n, p + padding - j, f] weight[f, c, j]
//   grad_weight[f, j, c] = sum over samples n, windows w of
//                              g[n, w, f] input[n, w + j - padding, c]
//
// For strides and dilations of 1, and pools that neither overlap nor lie far apart. The input's is
// itself a convolution, of g with k - 1 zeros around it; the weight's is TileWeightGradient's, with
// windows for rows. They do pool_stride times the multiply-adds of convolution_input_gradient.h and
// convolution_weight_gradient.h, which visit winners alone, but many more a second.
//
// A sample whose g is too large or not finite, and all where a weight is not plain
// (tile_product.h), are left to those. An input that is not finite makes the gradients of its taps
// NaN, as torch's dense ones are, whether or not its window won.
//
// Scratch, owned by the call: the weights as they are multiplied; for each thread g of one sample,
// as it is multiplied, and of one pool; of blocks of samples g, and their input between zeros where
// it does not lie so.
// Cost: 4 N W F k C FLOPs. Limit: as tile_product.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_input.h"
#include "tile_product.h"
#include "tile_weight_gradient.h"
#include "vector_product.h"
#include "window_depths.h"

namespace seqkernels {

// Calls function(window, numbers) with g of every window that some pool of a sample covers, F
// numbers; line: room for pool_size of those.
template <class T, class Function>
inline void for_each_window_gradient(const ConvolutionShape& shape, const int32_t* argmax,
                                     const T* gradients, int64_t n, int64_t windows, T* line,
                                     Function&& function) {
    const int64_t filters = shape.filters;
    for (int64_t pool = 0; pool < shape.pools(windows); ++pool) {
        const Range own = windows_of_pool(shape, pool, windows);
        const int64_t entry = (n * shape.pooled + pool) * filters;
        std::memset(line, 0, static_cast<std::size_t>(own.count() * filters) * sizeof(T));
        for (int64_t f = 0; f < filters; ++f) {
            const int64_t window = argmax[entry + f];
            if (own.has(window)) line[(window - own.begin) * filters + f] = gradients[entry + f];
        }
        for (int64_t window = own.begin; window < own.end; ++window) {
            function(window, line + (window - own.begin) * filters);
        }
    }
}

template <int planes>
class TileInputGradient {
    using Product = TileProduct<planes>;
    using Vector = typename Product::Vector;
    using T = typename Product::T;
    using Left = typename Product::Left;

 public:
    TileInputGradient(const ConvolutionBackward<T>& arguments, const T* gradients, int threads)
        : call_(arguments),
          shape_(arguments.shape),
          gradients_(gradients),
          layout_{shape_.channels, shape_.kernel_size * shape_.filters, Product::vectors, 1},
          plane_(checked_product(
                     {shape_.length + shape_.kernel_size - 1 + Product::rows, shape_.filters}) +
                 tile_depth),
          packed_(wanted() ? Product::packed_elements(layout_) : 0),
          panels_(wanted() ? checked_product({Product::pack_scratch_elements(layout_), threads})
                           : 0),
          left_(wanted() ? checked_product({plane_, planes, threads}) : 0),
          lines_(wanted() ? checked_product({shape_.pool_size, shape_.filters, threads}) : 0),
          offsets_(Product::blocks(layout_.depth)),
          left_out_(wanted() ? shape_.batch : 0) {
        for (int64_t b = 0; b < Product::blocks(layout_.depth); ++b) {
            offsets_.data()[b] = b * tile_depth;
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

    // A thread's part of the samples.
    void run(int thread, int threads) const {
        if (!wanted() || all_left_out_) return;
        const typename Product::Session session{};
        const Range samples = part_of(shape_.batch, 1, thread, threads);
        Left* left = left_.data() + thread * planes * plane_;
        T* line = lines_.data() + thread * shape_.pool_size * shape_.filters;
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            left_out_.data()[n] = !sample(n, left, line);
        }
    }

    // Calls function(samples) for those that are left to others, after all threads have run.
    template <class Function>
    void for_each_left_out(Function&& function) const {
        if (!wanted()) return;
        for_each_marked(left_out_.data(), shape_.batch, all_left_out_, function);
    }

 private:
    bool sample(int64_t n, Left* left, T* line) const {
        const int64_t channels = shape_.channels, filters = shape_.filters;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t windows = shape_.windows(length);
        T* target = call_.grad_input + n * shape_.length * channels;
        std::memset(target + length * channels, 0,
                    static_cast<std::size_t>((shape_.length - length) * channels) * sizeof(T));
        TileMagnitude magnitude;
        const int64_t numbers = shape_.pooled * filters;
        for (int64_t i = 0; i < numbers; i += Vector::width) {
            magnitude.take(load_up_to<Vector>(gradients_ + n * numbers + i, numbers - i));
        }
        const T scale =
            Product::cuts || !TileMagnitude::is_finite(magnitude.bits()) ? magnitude.scale() : T(1);
        if (scale == T(0)) return false;
        // Row i holds g of window i + first.
        const int64_t rows = length + shape_.kernel_size - 1;
        const int64_t first = shape_.padding_left - (shape_.kernel_size - 1);
        for (int p = 0; p < planes; ++p) {
            std::memset(static_cast<void*>(left + p * plane_), 0,
                        static_cast<std::size_t>(rows * filters + tile_depth) * sizeof(Left));
        }
        typename Product::Magnitude unused;
        for_each_window_gradient(shape_, call_.argmax, gradients_, n, windows, line,
                                 [&](int64_t window, T* numbers) {
                                     const int64_t row = window - first;
                                     if (row < 0 || row >= rows) return;
                                     for (int64_t f = 0; f < filters && scale != T(1); ++f)
                                         numbers[f] *= scale;
                                     Product::store_left(numbers, filters, filters,
                                                         left + row * filters, plane_, unused);
                                 });
        const Vector inverse = Vector::broadcast(T(1) / scale);
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
                        store_up_to(sums[m * units + u] * inverse,
                                    target + (begin + m) * channels + c, channels - c);
                    }
                }
            });
        }
        return true;
    }

    const ConvolutionBackward<T>& call_;
    const ConvolutionShape& shape_;
    const T* const gradients_;
    const PanelLayout<Vector> layout_;  // columns: channels; depth: k F
    const int64_t plane_;
    const Scratch<typename Product::Packed> packed_;
    const Scratch<T> panels_;
    const Scratch<Left> left_;
    const Scratch<T> lines_;
    const Scratch<int64_t> offsets_;
    const Scratch<uint8_t> left_out_;
    mutable std::atomic<bool> all_left_out_{false};
};

template <int planes>
class TileWindowsGradient {
    using Product = TileProduct<planes>;
    using Vector = typename Product::Vector;
    using T = typename Product::T;
    using Gradient = TileWeightGradient<planes>;
    using Operand = typename Gradient::Operand;

 public:
    TileWindowsGradient(const ConvolutionBackward<T>& arguments, const T* gradients, int threads)
        : call_(arguments),
          shape_(arguments.shape),
          gradients_(gradients),
          direct_(is_read_in_place<T>(shape_, arguments.input) && shape_.padding_left == 0 &&
                  shape_.padding_right == 0 && arguments.input.stride_length == shape_.channels),
          positions_(shape_.padding_left + shape_.length + shape_.padding_right),
          windows_(smaller(shape_.windows(shape_.length),
                           shape_.pools(shape_.windows(shape_.length)) * shape_.pool_stride)),
          samples_in_block_(samples_in_block()),
          gradient_(wanted() ? shape_.filters : 0, threads),
          operand_(shape_.kernel_size * shape_.channels, arguments.grad_weight),
          nothing_(0, nullptr),
          input_(wanted() && !direct_
                     ? checked_product({samples_in_block_, positions_, shape_.channels})
                     : 0),
          windows_gradients_(
              wanted() ? checked_product({samples_in_block_, windows_, shape_.filters}) : 0),
          zeros_(wanted() && direct_ ? shape_.kernel_size * shape_.channels : 0),
          lines_(wanted() ? checked_product({shape_.pool_size, shape_.filters, threads}) : 0) {
        const int64_t count = wanted() && direct_ ? shape_.kernel_size * shape_.channels : 0;
        for (int64_t i = 0; i < count; ++i) zeros_.data()[i] = 0;
    }

    bool wanted() const { return call_.grad_weight != nullptr; }

    // Called by every thread of a region.
    void run(int thread, int threads, Barrier& barrier) const {
        if (!wanted()) return;
        const typename Product::Session session{};
        gradient_.clear(operand_, thread, threads);
        for (int64_t begin = 0; begin < shape_.batch; begin += samples_in_block_) {
            const int64_t samples = smaller(samples_in_block_, shape_.batch - begin);
            const Range mine = part_of(samples, 1, thread, threads);
            for (int64_t i = mine.begin; i < mine.end; ++i) lay_out(begin, i, thread);
            barrier.wait(threads);
            // Rows are windows of the block, those that no pool covers zero in g.
            gradient_.add(
                samples * windows_,
                [&](int64_t row) { return windows_gradients_.data() + row * shape_.filters; },
                operand_,
                [&](int64_t row) { return window(begin, row / windows_, row % windows_); },
                nothing_, [](int64_t) -> const T* { return nullptr; }, thread, threads, barrier);
        }
    }

 private:
    int64_t samples_in_block() const {
        constexpr int64_t block_bytes = 4 << 20;
        const int64_t sample_bytes = larger(
            1, checked_product({larger(windows_ * shape_.filters, positions_ * shape_.channels),
                                int64_t{sizeof(T)}}));
        return larger(1, smaller(shape_.batch, block_bytes / sample_bytes));
    }

    const T* window(int64_t begin, int64_t sample, int64_t window) const {
        if (direct_) {
            const T* numbers = static_cast<const T*>(call_.input.numbers.data);
            const int64_t n = begin + sample;
            const int64_t whole = shape_.windows(sample_length(shape_, call_.lengths, n));
            if (window >= whole) return zeros_.data();
            return numbers + n * call_.input.stride_batch + window * shape_.channels;
        }
        return input_.data() + (sample * positions_ + window) * shape_.channels;
    }

    // g of a sample's windows and, where it is not read in place, its input between zeros.
    void lay_out(int64_t begin, int64_t sample, int thread) const {
        const int64_t n = begin + sample, filters = shape_.filters;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        T* target = windows_gradients_.data() + sample * windows_ * filters;
        std::memset(target, 0, static_cast<std::size_t>(windows_ * filters) * sizeof(T));
        T* line = lines_.data() + thread * shape_.pool_size * filters;
        for_each_window_gradient(shape_, call_.argmax, gradients_, n, shape_.windows(length), line,
                                 [&](int64_t window, const T* numbers) {
                                     if (window >= windows_) return;
                                     std::memcpy(target + window * filters, numbers,
                                                 static_cast<std::size_t>(filters) * sizeof(T));
                                 });
        if (direct_) return;
        const int64_t channels = shape_.channels;
        T* positions = input_.data() + sample * positions_ * channels;
        const int64_t before = shape_.padding_left * channels, own = length * channels;
        std::memset(positions, 0, static_cast<std::size_t>(before) * sizeof(T));
        typename VectorProduct<Vector>::Magnitude magnitude;
        pack_positions<Vector, VectorProduct<Vector>>(shape_, call_.input, n, 0, length, channels,
                                                      positions + before, 0, magnitude);
        std::memset(positions + before + own, 0,
                    static_cast<std::size_t>(positions_ * channels - before - own) * sizeof(T));
    }

    const ConvolutionBackward<T>& call_;
    const ConvolutionShape& shape_;
    const T* const gradients_;
    const bool direct_;
    const int64_t positions_;
    const int64_t windows_;  // of a sample that some pool may cover, gaps between pools included
    const int64_t samples_in_block_;
    const Gradient gradient_;
    const Operand operand_;
    const Operand nothing_;
    const Scratch<T> input_;
    const Scratch<T> windows_gradients_;
    const Scratch<T> zeros_;  // a window beyond a sample's end
    const Scratch<T> lines_;
};

// Whether they are faster than to visit winners alone. With three planes they are not (training of
// 336 positions of 256 channels, 256 filters of 7, pools of 3: 32.3 ms, by winners 29.8; of 256
// positions of 128 channels, 128 filters of 3, pools of 2: 5.2 ms, by winners 4.4).
template <int planes>
constexpr int64_t largest_dense_pool = planes == 1   ? 8
                                       : planes == 2 ? 3
                                                     : 0;

template <int planes>
inline bool pays_dense(const ConvolutionShape& shape) {
    return shape.stride == 1 && shape.dilation == 1 && shape.pool_size > 0 &&
           shape.pool_stride >= shape.pool_size && shape.pool_stride <= largest_dense_pool<planes>;
}

}  // namespace seqkernels
