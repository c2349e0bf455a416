// Which samples of a ragged batch run at which step, where in time each of them then is, and how
// the work of a step is shared out among threads.
#pragma once

#include <cstdint>

#include "../core/scratch.h"
#include "kernels.h"
#include "processor.h"
#include "product.h"

namespace seqkernels {

// Rows of sequences, as many as (T, N, ...) has.
static inline int64_t rows_of(const RecurrenceShape& shape, const int64_t* batch_sizes) {
    if (batch_sizes == nullptr) return checked_product({shape.steps, shape.batch});
    int64_t rows = 0;
    for (int64_t step = 0; step < shape.steps; ++step) rows += batch_sizes[step];
    return rows;
}

// Samples are ordered by length, longest first (equal lengths by index), so that those still
// running at a step are the first active(step) of the order. Packed sequences come in that order.
//
// Scratch, owned by the schedule: T + N integers, of packed sequences twice as many.
class Schedule {
 public:
    // batch_sizes: of packed sequences, or null; see kernels.h
    Schedule(const RecurrenceShape& shape, const int64_t* lengths, const int64_t* batch_sizes);
    ~Schedule();

    int64_t length(int64_t n) const { return lengths_ == nullptr ? shape_.steps : lengths_[n]; }
    int64_t longest() const { return longest_; }
    int64_t active(int64_t step) const { return active_.data()[step]; }
    int64_t sample(int64_t position) const { return order_.data()[position]; }

    // The time that sample n reads at its step'th step.
    int64_t time(int64_t n, int64_t step) const {
        return shape_.reverse ? length(n) - 1 - step : step;
    }
    // The row of (T, N, ...) of what sample n reads at its step'th step.
    // Inlined always: a copy compiled for one ISA must not be linked into another's kernels.
    [[gnu::always_inline]] int64_t row(int64_t n, int64_t step) const {
        const int64_t at = time(n, step);
        return (is_packed_ ? first_rows_.data()[at] : at * shape_.batch) + n;
    }
    // What it reads there.
    template <class Number>
    [[gnu::always_inline]] const Number* input_row(const RecurrenceInput<Number>& input, int64_t n,
                                                   int64_t step) const {
        const int64_t from_step = is_packed_
                                      ? first_rows_.data()[time(n, step)] * input.stride_batch
                                      : time(n, step) * input.stride_step;
        return input.data + from_step + n * input.stride_batch;
    }

    // Rows within the lengths.
    int64_t row_count() const { return row_count_; }
    // Calls function(row) for a sample's rows beyond its length.
    template <class Function>
    void for_each_row_beyond(int64_t n, Function&& function) const {
        if (is_packed_) return;
        for (int64_t time = length(n); time < shape_.steps; ++time) {
            function(time * shape_.batch + n);
        }
    }

 private:
    void order_by_length();
    void read_packed(const int64_t* batch_sizes);

    const RecurrenceShape& shape_;
    const bool is_packed_;
    const int64_t* lengths_;  // those given, or packed_lengths_
    Scratch<int64_t> order_;
    Scratch<int64_t> active_;
    Scratch<int64_t> packed_lengths_;
    Scratch<int64_t> first_rows_;  // of each step of packed sequences
    int64_t row_count_ = 0;
    int64_t longest_ = 0;
};

// Threads as a grid of row parts by column parts.
struct Grid {
    int64_t row_parts;
    int64_t column_parts;

    int64_t row_part(int thread) const { return thread / column_parts; }
    int64_t column_part(int thread) const { return thread % column_parts; }
    bool has(int thread) const { return thread < row_parts * column_parts; }
    Range rows(int64_t count, int64_t unit, int thread) const {
        return has(thread) ? part_of(count, unit, row_part(thread), row_parts) : Range{0, 0};
    }
    Range columns(int64_t count, int thread) const {
        return has(thread) ? part_of(count, 1, column_part(thread), column_parts) : Range{0, 0};
    }
    // The positions below `count` that fall to a thread when rows are dealt out in turn (so that
    // samples of like length are spread over the threads): row_part, row_part + row_parts, ...
    int64_t dealt(int64_t count, int thread) const {
        const int64_t part = row_part(thread);
        return has(thread) && count > part ? divide_rounding_up(count - part, row_parts) : 0;
    }
};

// A product of many rows: rows first, columns where rows run out.
static inline Grid product_grid(int64_t rows, int64_t tile_rows, int64_t panels, int threads) {
    const int64_t row_parts = larger(1, smaller(threads, divide_rounding_up(rows, tile_rows)));
    return {row_parts, larger(1, smaller(panels, threads / row_parts))};
}

// The steps of a recurrence. Split by samples, threads need not wait for each other, but each of
// them reads all recurrent weights at every step: right while these take no more than 1 MiB of its
// own L2. Split by hidden units, each reads its own part of them, and all wait for each other after
// every step. (Three planes of N 64, inference, two threads, family 6 model 167 with 2 MiB: where
// they take 1.5 MiB, LSTM of H 256 and RNN of H 512, splitting by units is 4 and 17 % faster; 0.8
// MiB, RNN of H 384, a third slower. In training the two are within 4 %.)
//
// Where a step is short, so that a barrier takes longer than a thread more saves, they are split
// among fewer threads, if need be one. (One thread in place of two, T 50, as many inputs as hidden
// units, vectors, family 6 model 167: LSTM of N 1, H 32 1.47 times faster, in training 1.19, H 48
// 1.24, H 64 1.07, in training 0.96, H 96 0.82; N 2, H 48 1.17, H 64 0.94; RNN of N 1, H 128 1.18,
// H 192 0.96. Cores that hear of each other sooner gain from less: on AMD family 26 both directions
// of an LSTM of N 1, H 64, T 25 took 56 us, each on two threads, and 50, each on one. There half as
// much is asked for, which was not measured.)
//
// columns: at most so many parts of the hidden units
template <class Product>
inline Grid recurrence_grid(const RecurrenceShape& shape, int64_t columns,
                            const PanelLayout<typename Product::Vector>& weights, int threads) {
    constexpr int64_t private_cache_bytes = 1 << 20;
    // A single plane counts as float32: half of that was not measured.
    constexpr int64_t number_bytes = larger(
        sizeof(typename Product::T), Product::left_planes * sizeof(typename Product::Packed));
    const int64_t bytes = weights.elements() * number_bytes;
    const int64_t batch = shape.batch;
    if (batch >= threads * Product::rows && bytes <= private_cache_bytes) return {threads, 1};
    // Of a thread's part of a step; with samples of its own it reads all weights.
    const int64_t least_by_columns = is_by_intel() ? 1 << 14 : 1 << 13;
    const int64_t least_by_rows = 2 * least_by_columns;
    const int64_t multiply_adds =
        batch * shape.gates() * shape.hidden * (shape.inputs + shape.hidden);
    const int64_t column_parts =
        larger(1, smaller(smaller(columns, threads), multiply_adds / least_by_columns));
    const int64_t row_parts =
        smaller(smaller(batch, threads / column_parts), multiply_adds / least_by_rows);
    return {larger(1, row_parts), column_parts};
}

}  // namespace seqkernels
