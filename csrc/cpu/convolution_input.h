// How the convolution kernels reach into a sequence batch: which positions of a sample are real,
// rows of channels in memory, and a packed copy where channels do not lie side by side.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "product.h"

namespace seqkernels {

// Real positions of a sample, never more than L.
static inline int64_t sample_length(const ConvolutionShape& shape, const int64_t* lengths,
                                    int64_t sample) {
    return lengths == nullptr ? shape.length : lengths[sample];
}

// Of some positions those that are real.
static inline Range real_positions(const ConvolutionShape& shape, const int64_t* lengths,
                                   int64_t sample, Range positions) {
    const int64_t from = smaller(positions.end, larger(positions.begin, 0));
    return {from, larger(from, smaller(positions.end, sample_length(shape, lengths, sample)))};
}

// A stretch of one sample, positions with their channels side by side.
//   rows + position * stride is position's row of C channels, for the positions that are there.
template <class T>
struct SampleRows {
    const T* rows;
    int64_t stride;
    Range positions;

    bool has(int64_t position) const { return positions.has(position); }
    const T* at(int64_t position) const { return rows + position * stride; }
    // Whether consecutive positions follow each other without a gap.
    bool dense(int64_t channels) const { return stride == channels; }
};

// Calls function(samples) for the runs of samples that are marked, or for all at once.
template <class Function>
inline void for_each_marked(const uint8_t* marks, int64_t batch, bool all, Function&& function) {
    if (all) return function(Range{0, batch});
    for (int64_t begin = 0, end = 0; begin < batch; begin = end) {
        for (++end; end < batch && (marks[end] != 0) == (marks[begin] != 0);) ++end;
        if (marks[begin] != 0) function(Range{begin, end});
    }
}

// Whether positions can be read where they lie: numbers of type T, their channels side by side.
template <class T>
inline bool is_read_in_place(const ConvolutionShape& shape, const SequenceView& input) {
    return input.numbers.is<T>() && (input.stride_channel == 1 || shape.channels <= 1);
}

// Whether all positions of the window that begins at `start` are real.
static inline bool is_within(const ConvolutionShape& shape, int64_t start, int64_t length) {
    return start >= 0 && start + shape.dilation * (shape.kernel_size - 1) < length;
}

// Reads `positions` positions that begin at `source` for a target with `pitch` numbers from each to
// the next. Calls store_run(numbers, offset, count, room) for numbers that lie side by side, else
// store(vector, offset, count, room) for a vector's worth or less of channels at a time; room: up
// to what the target has no other numbers.
template <class Vector, class Number, class StoreRun, class Store>
inline void read_positions(const ConvolutionShape& shape, const SequenceView& input,
                           const Number* source, int64_t positions, int64_t pitch,
                           StoreRun&& store_run, Store&& store) {
    const int64_t channels = shape.channels;
    if (input.stride_channel == 1 && input.stride_length == channels && pitch == channels) {
        store_run(source, 0, positions * channels, positions * channels);
        return;
    }
    if (input.stride_channel == 1) {
        for (int64_t position = 0; position < positions; ++position) {
            store_run(source + position * input.stride_length, position * pitch, channels, pitch);
        }
        return;
    }
    // Positions by the handful, in which direction (N, C, L) lies: transposed in registers.
    constexpr int at_once = transposed_columns<Number>;
    using T = typename Vector::Element;
    for (int64_t position = 0; position < positions; position += at_once) {
        const int64_t here = smaller(at_once, positions - position);
        for (int64_t channel = 0; channel < channels; channel += Vector::width) {
            const int64_t left = smaller(Vector::width, channels - channel);
            const Number* from =
                source + position * input.stride_length + channel * input.stride_channel;
            Vector columns[at_once];
            if (left == Vector::width && here == at_once && input.stride_length == 1) {
                Vector::load_transposed(from, input.stride_channel, columns);
            } else {
                T numbers[at_once][Vector::width] = {};
                for (int64_t lane = 0; lane < left; ++lane) {
                    for (int64_t i = 0; i < here; ++i) {
                        numbers[i][lane] =
                            widen(from[lane * input.stride_channel + i * input.stride_length]);
                    }
                }
                for (int64_t i = 0; i < at_once; ++i) columns[i] = Vector::load(numbers[i]);
            }
            const int64_t room = left == channels - channel ? pitch - channel : left;
            for (int64_t i = 0; i < here; ++i) {
                store(columns[i], (position + i) * pitch + channel, left, room);
            }
        }
    }
}

// Takes note of the numbers at positions [begin, end) of a sample.
template <class Vector, class Magnitude>
inline void judge_positions(const ConvolutionShape& shape, const SequenceView& input,
                            int64_t sample, int64_t begin, int64_t end, Magnitude& magnitude) {
    const int64_t first = sample * input.stride_batch + begin * input.stride_length;
    with_numbers<typename Vector::Element>(input.numbers, [&](const auto* numbers) {
        read_positions<Vector>(
            shape, input, numbers + first, end - begin, shape.channels,
            [&](const auto* run, int64_t, int64_t count, int64_t) {
                for (int64_t i = 0; i < count; i += Vector::width) {
                    magnitude.take(load_up_to<Vector>(run + i, count - i));
                }
            },
            [&](Vector columns, int64_t, int64_t, int64_t) { magnitude.take(columns); });
    });
}

// Positions [begin, end) of a sample as the left operand of a product: plane after plane, `plane`
// numbers apart, in each its channels side by side, positions `pitch` apart, zeros between.
template <class Vector, class Product>
inline void pack_positions(const ConvolutionShape& shape, const SequenceView& input, int64_t sample,
                           int64_t begin, int64_t end, int64_t pitch,
                           typename Product::Left* target, int64_t plane,
                           typename Product::Magnitude& magnitude) {
    const int64_t first = sample * input.stride_batch + begin * input.stride_length;
    with_numbers<typename Vector::Element>(input.numbers, [&](const auto* numbers) {
        read_positions<Vector>(
            shape, input, numbers + first, end - begin, pitch,
            [&](const auto* run, int64_t offset, int64_t count, int64_t room) {
                Product::store_left(run, count, room, target + offset, plane, magnitude);
            },
            [&](Vector columns, int64_t offset, int64_t count, int64_t room) {
                typename Vector::Element line[Vector::width];
                columns.store(line);
                Product::store_left(line, count, room, target + offset, plane, magnitude);
            });
    });
}

// The same of positions some of which may lie beyond the sample: zeros there, and `beyond` more.
template <class Vector, class Product, class T>
inline void copy_positions(const ConvolutionForward<T>& call, int64_t sample, Range positions,
                           int64_t pitch, int64_t beyond, typename Product::Left* target,
                           int64_t plane, typename Product::Magnitude& magnitude) {
    const auto clear = [](typename Product::Left* numbers, int64_t count) {
        std::memset(static_cast<void*>(numbers), 0,
                    static_cast<std::size_t>(count) * sizeof(*numbers));
    };
    const auto [from, to] = real_positions(call.shape, call.lengths, sample, positions);
    auto* const there = target + (from - positions.begin) * pitch;
    pack_positions<Vector, Product>(call.shape, call.input, sample, from, to, pitch, there, plane,
                                    magnitude);
    for (int p = 0; p < Product::left_planes; ++p) {
        clear(target + p * plane, (from - positions.begin) * pitch);
        clear(there + p * plane + (to - from) * pitch, (positions.end - to) * pitch + beyond);
    }
}

}  // namespace seqkernels
