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

// A stretch of one sample, positions with their channels side by side.
//   rows + position * stride is position's row of C channels, for positions in [0, length).
template <class T>
struct SampleRows {
    const T* rows;
    int64_t stride;
    int64_t length;

    bool has(int64_t position) const { return position >= 0 && position < length; }
    const T* at(int64_t position) const { return rows + position * stride; }
    // Whether consecutive positions follow each other without a gap.
    bool dense(int64_t channels) const { return stride == channels; }
};

// Whether positions can be read where they lie: numbers of type T, their channels side by side.
template <class T>
inline bool is_read_in_place(const ConvolutionShape& shape, const SequenceView& input) {
    return input.numbers.is<T>() && (input.stride_channel == 1 || shape.channels <= 1);
}

// Whether all positions of the window that begins at `start` are real.
static inline bool is_within(const ConvolutionShape& shape, int64_t start, int64_t length) {
    return start >= 0 && start + shape.dilation * (shape.kernel_size - 1) < length;
}

// Copies `count` positions that begin at `source` to target, (count, C) contiguous.
template <class Vector, class Number, class Left>
inline void pack_positions(const ConvolutionShape& shape, const SequenceView& input,
                           const Number* source, int64_t count, Left* target) {
    if (input.stride_channel == 1) {
        for (int64_t position = 0; position < count; ++position) {
            const Number* from = source + position * input.stride_length;
            Left* to = target + position * shape.channels;
            for (int64_t channel = 0; channel < shape.channels; channel += Vector::width) {
                const int64_t left = shape.channels - channel;
                store_up_to(load_up_to<Vector>(from + channel, left), to + channel, left);
            }
        }
        return;
    }
    // Blocks of positions keep the target's lines in cache while channel after channel is read
    // along the sequence, the direction in which (N, C, L) lies.
    constexpr int64_t block = 16;
    for (int64_t first = 0; first < count; first += block) {
        const int64_t last = smaller(first + block, count);
        for (int64_t channel = 0; channel < shape.channels; ++channel) {
            const Number* line = source + channel * input.stride_channel;
            for (int64_t position = first; position < last; ++position) {
                narrow(widen(line[position * input.stride_length]),
                       target[position * shape.channels + channel]);
            }
        }
    }
}

// Copies positions [begin, end) of a sample to target, (end - begin, C) contiguous.
template <class Vector, class Left>
inline void pack_positions(const ConvolutionShape& shape, const SequenceView& input, int64_t sample,
                           int64_t begin, int64_t end, Left* target) {
    const int64_t offset = sample * input.stride_batch + begin * input.stride_length;
    with_numbers<typename Vector::Element>(input.numbers, [&](const auto* numbers) {
        pack_positions<Vector>(shape, input, numbers + offset, end - begin, target);
    });
}

}  // namespace seqkernels
