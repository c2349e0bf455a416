// The input's part of convolution_backward.h, with pools: grad_input of sample after sample.
//
// The winners of a block of pools are sorted by their window, so that a window's gradient is read
// and written once for all filters that it won, and their sum stays in registers:
//   grad_input[s .. s + k C) += sum over filters f won by the window of g[f] weight[f, .. k C)
//
// It passes over block after block of columns, whose weights for a block of filters stay in L1.
//
// Scratch, owned by the call: the weights, F k C, in those blocks; for each thread the sorted
// winners of one block and their windows.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/scratch.h"
#include "convolution_input.h"
#include "scaled_rows.h"
#include "window_columns.h"

namespace seqkernels {

template <class Vector, class Number>
class ConvolutionInputGradient {
    using T = typename Vector::Element;
    using Columns = WindowColumns<Vector>;

 public:
    // Without a grad_input nothing is computed.
    ConvolutionInputGradient(const ConvolutionBackward<Number>& arguments, int threads)
        : call_(arguments),
          shape_(arguments.shape),
          columns_(shape_, shape_.channels),
          filters_in_block_(smaller(shape_.filters, most_filters_in_block)),
          filter_blocks_(divide_rounding_up(shape_.filters, larger(1, filters_in_block_))),
          pools_in_block_(smaller(shape_.pooled, pools_in_block(shape_))),
          windows_in_block_(larger(0, (pools_in_block_ - 1) * shape_.pool_stride) +
                            shape_.pool_size),
          weight_(wanted() ? checked_product({shape_.filters, columns_.blocks(), columns_.widest()})
                           : 0),
          winners_(wanted() ? checked_product({winners_in_block(), threads}) : 0),
          groups_(wanted() ? checked_product({windows_in_block_ + 1, threads}) : 0),
          sums_(wanted() && !is_target ? checked_product({shape_.length, shape_.channels, threads})
                                       : 0) {}

    bool wanted() const { return call_.grad_input != nullptr; }

    // A thread's part of the weights: before any call of run.
    void prepare(int thread, int threads) const {
        if (!wanted()) return;
        const Range mine = part_of(shape_.filters, 1, thread, threads);
        for (int64_t filter_block = 0; filter_block < filter_blocks_; ++filter_block) {
            const Range filters = filters_of(filter_block);
            for (int64_t i = 0; i < columns_.blocks(); ++i) {
                const typename Columns::Block block = columns_.block(i);
                T* target = weight_.data() + weight_offset(filter_block, i);
                const int64_t end = smaller(filters.end, mine.end);
                for (int64_t f = larger(filters.begin, mine.begin); f < end; ++f) {
                    pack_weight(f, block, target + (f - filters.begin) * columns_.widest());
                }
            }
        }
    }

    // Samples that are left to others: none.
    template <class Function>
    void for_each_left_out(Function&&) const {}

    // One sample, by one of the threads; gradients: its g, (P, F).
    void run(int64_t n, const T* gradients, int thread) const {
        if (!wanted()) return;
        Winner* winners = winners_.data() + thread * winners_in_block();
        Group* groups = groups_.data() + thread * (windows_in_block_ + 1);
        const int64_t numbers = shape_.length * shape_.channels;
        Number* target = call_.grad_input + n * numbers;
        if constexpr (is_target) {
            sample(n, gradients, target, winners, groups);
        } else {
            T* sums = sums_.data() + thread * numbers;
            sample(n, gradients, sums, winners, groups);
            convert_numbers<Vector>(sums, target, numbers);
        }
    }

 private:
    using Winner = ScaledRow<T>;  // its offset: of the filter's weights within a block
    static constexpr int64_t most_filters_in_block = 96;
    // Whether sums are made where they belong.
    static constexpr bool is_target = std::is_same_v<T, Number>;

    // The winners of one window: up to where the next group's begin.
    struct Group {
        int64_t window;
        int64_t begin;
    };

    Range filters_of(int64_t filter_block) const {
        return part_of(shape_.filters, 1, filter_block, filter_blocks_);
    }
    int64_t winners_in_block() const { return pools_in_block_ * filters_in_block_; }
    int64_t weight_offset(int64_t filter_block, int64_t block) const {
        const Range filters = filters_of(filter_block);
        return (filters.begin * columns_.blocks() + (filters.end - filters.begin) * block) *
               columns_.widest();
    }

    void pack_weight(int64_t f, const typename Columns::Block& block, T* target) const {
        const ConvolutionWeight& weight = call_.weight;
        with_numbers<T>(weight.numbers, [&](const auto* numbers) {
            const auto* filter = numbers + f * weight.stride_filter;
            columns_.for_each_tap(
                block, [&](int64_t place, int64_t tap, int64_t channel, int64_t count) {
                    const auto* from =
                        filter + tap * weight.stride_tap + channel * weight.stride_channel;
                    for (int64_t i = 0; i < count; ++i) {
                        target[place + i] = widen(from[i * weight.stride_channel]);
                    }
                });
        });
    }

    void sample(int64_t n, const T* gradients, T* gradient, Winner* winners, Group* groups) const {
        std::memset(gradient, 0,
                    static_cast<std::size_t>(shape_.length * shape_.channels) * sizeof(T));
        const int64_t length = sample_length(shape_, call_.lengths, n);
        const int64_t pools = shape_.pools(shape_.windows(length));
        for (int64_t begin = 0; begin < pools; begin += pools_in_block_) {
            const Range block{begin, smaller(pools, begin + pools_in_block_)};
            for (int64_t filter_block = 0; filter_block < filter_blocks_; ++filter_block) {
                const int64_t count = sort_winners(n, gradients, length, block,
                                                   filters_of(filter_block), winners, groups);
                for (int64_t i = 0; i < columns_.blocks(); ++i) {
                    const typename Columns::Block columns = columns_.block(i);
                    const T* weight = weight_.data() + weight_offset(filter_block, i);
                    for (int64_t g = 0; g < count; ++g) {
                        add_group(gradient, length, groups[g], groups[g + 1].begin, winners,
                                  columns, weight);
                    }
                }
            }
        }
    }

    // Sorts a block's winners by window, those of one window by pool and filter; returns how many
    // windows won anything.
    int64_t sort_winners(int64_t n, const T* gradients, int64_t length, Range pools, Range filters,
                         Winner* winners, Group* groups) const {
        const int64_t windows = shape_.windows(length);
        const int64_t first = windows_of_pool(shape_, pools.begin, windows).begin;
        const int64_t last = windows_of_pool(shape_, pools.end - 1, windows).end;
        const auto for_each_winner = [&](auto&& function) {
            for (int64_t pool = pools.begin; pool < pools.end; ++pool) {
                const Range own = windows_of_pool(shape_, pool, windows);
                const int64_t entry = pool * shape_.filters;
                const int32_t* argmax = call_.argmax + n * shape_.pooled * shape_.filters;
                for (int64_t f = filters.begin; f < filters.end; ++f) {
                    const int64_t window = argmax[entry + f];
                    if (own.has(window)) {
                        function(window - first, f, gradients[entry + f]);
                    }
                }
            }
        };
        for (int64_t window = first; window < last; ++window) groups[window - first] = {window, 0};
        for_each_winner([&](int64_t place, int64_t, T) { ++groups[place].begin; });
        int64_t end = 0;
        for (int64_t place = 0; place < last - first; ++place) {
            const int64_t count = groups[place].begin;
            groups[place].begin = end;
            end += count;
        }
        // While winners find their places, a group's begin moves on to its end.
        for_each_winner([&](int64_t place, int64_t f, T gradient) {
            winners[groups[place].begin++] = {(f - filters.begin) * columns_.widest(), gradient};
        });
        int64_t count = 0, begin = 0;
        for (int64_t place = 0; place < last - first; ++place) {
            const Group group = groups[place];
            if (group.begin > begin) groups[count++] = {group.window, begin};
            begin = group.begin;
        }
        groups[count] = {0, end};
        return count;
    }

    void add_group(T* gradient, int64_t length, const Group& group, int64_t end,
                   const Winner* winners, const typename Columns::Block& block,
                   const T* weight) const {
        const int64_t start = window_start(shape_, group.window);
        const ScaledRows<T> rows{winners + group.begin, end - group.begin, 0};
        if (is_within(shape_, start, length)) {
            add_scaled_rows<Vector>(gradient + start * shape_.channels + block.offset, block.count,
                                    weight, &rows);
            return;
        }
        columns_.for_each_tap(
            block, [&](int64_t place, int64_t tap, int64_t channel, int64_t channels) {
                const int64_t position = start + tap * shape_.dilation;
                if (position < 0 || position >= length) return;
                add_scaled_rows<Vector>(gradient + position * shape_.channels + channel, channels,
                                        weight + place, &rows);
            });
    }

    const ConvolutionBackward<Number>& call_;
    const ConvolutionShape& shape_;
    const Columns columns_;
    const int64_t filters_in_block_;
    const int64_t filter_blocks_;
    const int64_t pools_in_block_;
    const int64_t windows_in_block_;
    const Scratch<T> weight_;
    const Scratch<Winner> winners_;
    const Scratch<Group> groups_;
    const Scratch<T> sums_;
};

}  // namespace seqkernels
