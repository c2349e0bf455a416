// The weight's part of convolution_backward.h: grad_weight of a thread's filters.
//
// The winners of a block of pools are listed filter by filter, and each filter's sum over its list
// stays in registers. With small pools, where every window wins many filters, block of columns
// after block of columns is added for all filters, from copies of the windows that stay in L1
// (where they lie, positions a power of two apart would push each other out). Each thread makes
// them for itself: with few filters to a thread they are not free.
//
// 16-bit numbers are widened as they are read: each window is read for the few filters it won, from
// half the bytes (family 6, model 167, two threads, 50 sentences of 56 words of 300 bfloat16
// numbers, 100 filters of 3, over time: 465 us with packed float32 copies, 165 without; the weights
// of the input's part gain nothing so, 200 to 225).
//
// Tried without gain, over time: window by window, with the sums of a block of columns of all
// filters in L1 (60 to 80 % slower, perhaps since loads wait for stores a multiple of 4 KiB before
// them); channels shared out among the threads, so that each reads half of the input (30 % slower);
// fetching the windows that come next; 8 to 28 samples at a time in place of 32, so that they stay
// in L2 (within the noise, family 6, model 207).
//
// Scratch, owned by the call: each filter's lists, a block of pools long; for each thread those
// copies; where the input's channels do not lie side by side, a packed copy of as many samples as 1
// MiB holds, at least one; the sums, F k C.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "convolution_input.h"
#include "scaled_rows.h"
#include "tap_order.h"
#include "vector_product.h"
#include "window_columns.h"

namespace seqkernels {

template <class Vector, class Number>
class ConvolutionWeightGradient {
    using T = typename Vector::Element;
    using Columns = WindowColumns<Vector>;

 public:
    // gradients: g, (N, P, F). Without a grad_weight nothing is computed.
    ConvolutionWeightGradient(const ConvolutionBackward<Number>& arguments, const T* gradients,
                              int threads)
        : call_(arguments),
          shape_(arguments.shape),
          gradients_(gradients),
          direct_(is_read_in_place<Number>(shape_, arguments.input)),
          stride_batch_(direct_ ? arguments.input.stride_batch : shape_.length * shape_.channels),
          stride_length_(direct_ ? arguments.input.stride_length : shape_.channels),
          columns_(shape_, stride_length_),
          samples_in_block_(direct_ ? shape_.batch : samples_in_block()),
          copies_(shape_.pool_size > 0 && shape_.pool_size <= largest_copied_pool),
          pools_in_block_(pools_in_block(shape_)),
          copied_elements_(
              copies_ ? checked_product({pools_in_block_, shape_.pool_size, columns_.widest()})
                      : 0),
          packed_(wanted() && !direct_ ? checked_product({samples_in_block_, stride_batch_}) : 0),
          whole_(wanted() ? checked_product({shape_.filters, pools_in_block_}) : 0),
          cut_(wanted() ? checked_product({shape_.filters, pools_in_block_}) : 0),
          counts_(wanted() ? shape_.filters : 0),
          copied_(wanted() ? checked_product({copied_elements_, threads}) : 0),
          sums_(wanted() ? checked_product({shape_.filters, shape_.kernel_size, shape_.channels})
                         : 0) {}

    bool wanted() const { return call_.grad_weight != nullptr; }
    // Whether anything is left to others: no.
    static constexpr bool is_left_out() { return false; }

    // Whether g of all samples is to be there when it runs.
    static constexpr bool reads_gradients = true;
    void prepare(int64_t, const T*) const {}

    // Called by every thread of a region.
    void run(int thread, int threads, Barrier& barrier) const {
        if (!wanted()) return;
        const Range filters = part_of(shape_.filters, 1, thread, threads);
        const int64_t window_elements = shape_.kernel_size * shape_.channels;
        const int64_t first = filters.begin * window_elements;
        const int64_t numbers = (filters.end - filters.begin) * window_elements;
        std::memset(sums_.data() + first, 0, static_cast<std::size_t>(numbers) * sizeof(T));
        for (int64_t begin = 0; begin < shape_.batch; begin += samples_in_block_) {
            const Range samples{begin, smaller(shape_.batch, begin + samples_in_block_)};
            if (!direct_) {
                pack(samples, thread, threads);
                barrier.wait(threads);
            }
            with_data([&](const auto* data) {
                add_samples(data, samples, filters, copied_.data() + thread * copied_elements_);
            });
            if (!direct_) barrier.wait(threads);
        }
        for (int64_t f = filters.begin; f < filters.end; ++f) {
            by_channels<Vector>(sums_.data() + f * window_elements, shape_.channels,
                                shape_.kernel_size, shape_.channels,
                                call_.grad_weight + f * window_elements);
        }
    }

 private:
    static constexpr int64_t largest_copied_pool = 4;

    // Its offset: of the window's first number in the input, or of its place among the copies.
    using WholeWindow = ScaledRow<T>;

    // A winner that reaches beyond its sample.
    struct CutWindow {
        int64_t sample_offset;
        int64_t start;
        int64_t length;
        T scale;
    };

    // Windows in a filter's lists.
    struct Counts {
        int64_t whole;
        int64_t cut;
    };

    int64_t samples_in_block() const {
        constexpr int64_t block_bytes = 1 << 20;
        const int64_t sample_bytes =
            larger(1, checked_product({shape_.length, shape_.channels, int64_t(sizeof(T))}));
        return larger(1, smaller(shape_.batch, block_bytes / sample_bytes));
    }

    void pack(Range samples, int thread, int threads) const {
        const Range mine = part_of(samples.end - samples.begin, 1, thread, threads);
        for (int64_t i = mine.begin; i < mine.end; ++i) {
            const int64_t n = samples.begin + i;
            typename VectorProduct<Vector>::Magnitude magnitude;
            pack_positions<Vector, VectorProduct<Vector>>(
                shape_, call_.input, n, 0, sample_length(shape_, call_.lengths, n), shape_.channels,
                packed_.data() + i * stride_batch_, 0, magnitude);
        }
    }

    // Calls function(data) with what samples are read from; one of the block that begins with
    // `first` lies sample_offset numbers from there.
    template <class Function>
    void with_data(Function&& function) const {
        if (direct_) {
            function(static_cast<const Number*>(call_.input.numbers.data));
        } else {
            function(static_cast<const T*>(packed_.data()));
        }
    }
    int64_t sample_offset(int64_t n, int64_t first) const {
        return (direct_ ? n : n - first) * stride_batch_;
    }

    template <class Data>
    void add_samples(const Data* data, Range samples, Range filters, T* copies) const {
        const int64_t end = samples.end * shape_.pooled;
        for (int64_t begin = samples.begin * shape_.pooled; begin < end; begin += pools_in_block_) {
            const Range pools{begin, smaller(end, begin + pools_in_block_)};
            list_winners(pools, samples.begin, filters);
            for (int64_t i = 0; i < columns_.blocks(); ++i) {
                const typename Columns::Block block = columns_.block(i);
                if (copies_) copy_windows(data, pools, samples.begin, block, copies);
                for (int64_t f = filters.begin; f < filters.end; ++f) {
                    if (copies_) {
                        add_whole_windows(f, block, copies);
                    } else {
                        add_whole_windows(f, block, data + block.offset);
                        add_cut_windows(f, block, data);
                    }
                }
            }
        }
    }

    // A pool of all samples, and the sample it belongs to.
    struct Pool {
        int64_t sample_offset;
        int64_t length;
        Range windows;
    };

    Pool pool_at(int64_t row, int64_t first_sample) const {
        const int64_t n = row / shape_.pooled;
        const int64_t length = sample_length(shape_, call_.lengths, n);
        return {sample_offset(n, first_sample), length,
                windows_of_pool(shape_, row % shape_.pooled, shape_.windows(length))};
    }

    // Lists the winners of pools [begin, end), counted over all samples, filter by filter.
    void list_winners(Range pools, int64_t first_sample, Range filters) const {
        for (int64_t f = filters.begin; f < filters.end; ++f) counts_.data()[f] = {0, 0};
        for (int64_t row = pools.begin; row < pools.end; ++row) {
            const Pool pool = pool_at(row, first_sample);
            const int64_t first_copy = (row - pools.begin) * shape_.pool_size;
            for (int64_t f = filters.begin; f < filters.end; ++f) {
                const int64_t window = call_.argmax[row * shape_.filters + f];
                if (!pool.windows.has(window)) continue;
                const int64_t start = window_start(shape_, window);
                const T scale = gradients_[row * shape_.filters + f];
                Counts& counts = counts_.data()[f];
                if (copies_) {
                    const int64_t copy = first_copy + window - pool.windows.begin;
                    whole_.data()[f * pools_in_block_ + counts.whole++] = {copy * columns_.widest(),
                                                                           scale};
                } else if (is_within(shape_, start, pool.length)) {
                    whole_.data()[f * pools_in_block_ + counts.whole++] = {
                        pool.sample_offset + start * stride_length_, scale};
                } else {
                    cut_.data()[f * pools_in_block_ + counts.cut++] = {pool.sample_offset, start,
                                                                       pool.length, scale};
                }
            }
        }
    }

    // One block of columns of every window of these pools, zeros beyond the sample.
    template <class Data>
    void copy_windows(const Data* data, Range pools, int64_t first_sample,
                      const typename Columns::Block& block, T* copies) const {
        for (int64_t row = pools.begin; row < pools.end; ++row) {
            const Pool pool = pool_at(row, first_sample);
            const Data* sample = data + pool.sample_offset;
            T* target = copies + (row - pools.begin) * shape_.pool_size * columns_.widest();
            for (int64_t window = pool.windows.begin; window < pool.windows.end;
                 ++window, target += columns_.widest()) {
                const int64_t start = window_start(shape_, window);
                if (is_within(shape_, start, pool.length)) {
                    copy(sample + start * stride_length_ + block.offset, target, block.count);
                    continue;
                }
                columns_.for_each_tap(
                    block, [&](int64_t place, int64_t tap, int64_t channel, int64_t channels) {
                        const int64_t position = start + tap * shape_.dilation;
                        if (position >= 0 && position < pool.length) {
                            copy(sample + position * stride_length_ + channel, target + place,
                                 channels);
                        } else {
                            std::memset(target + place, 0,
                                        static_cast<std::size_t>(channels) * sizeof(T));
                        }
                    });
            }
        }
    }

    template <class Data>
    static void copy(const Data* source, T* target, int64_t count) {
        if constexpr (std::is_same_v<Data, T>) {
            std::memcpy(target, source, static_cast<std::size_t>(count) * sizeof(T));
        } else {
            convert_numbers<Vector>(source, target, count);
        }
    }

    // Adds what a filter's lists contribute to one block of its columns.
    template <class Base>
    void add_whole_windows(int64_t f, const typename Columns::Block& block,
                           const Base* base) const {
        const ScaledRows<T> windows{whole_.data() + f * pools_in_block_, counts_.data()[f].whole,
                                    0};
        add_scaled_rows<Vector>(target_of(f, block), block.count, base, &windows);
    }
    template <class Data>
    void add_cut_windows(int64_t f, const typename Columns::Block& block, const Data* data) const {
        for (int64_t i = 0; i < counts_.data()[f].cut; ++i) {
            const CutWindow& window = cut_.data()[f * pools_in_block_ + i];
            const Data* sample = data + window.sample_offset;
            columns_.for_each_tap(
                block, [&](int64_t place, int64_t tap, int64_t channel, int64_t channels) {
                    const int64_t position = window.start + tap * shape_.dilation;
                    if (position < 0 || position >= window.length) return;
                    const WholeWindow row{position * stride_length_ + channel, window.scale};
                    const ScaledRows<T> rows{&row, 1, 0};
                    add_scaled_rows<Vector>(target_of(f, block) + place, channels, sample, &rows);
                });
        }
    }
    T* target_of(int64_t f, const typename Columns::Block& block) const {
        return sums_.data() + f * shape_.kernel_size * shape_.channels + block.column;
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const T* const gradients_;
    const bool direct_;
    const int64_t stride_batch_;
    const int64_t stride_length_;
    const Columns columns_;
    const int64_t samples_in_block_;
    const bool copies_;
    const int64_t pools_in_block_;
    const int64_t copied_elements_;
    const Scratch<T> packed_;
    const Scratch<WholeWindow> whole_;
    const Scratch<CutWindow> cut_;
    const Scratch<Counts> counts_;
    const Scratch<T> copied_;
    const Scratch<T> sums_;
};

}  // namespace seqkernels
