// The windows of a batch, cut into stretches that are worked on at a time, so that their input
// stays in L2 while all panels of filters pass: of a few whole samples, or of a part of a long one.
//
// Where tiles are multiplied whole (AMX), or windows together, the windows of a stretch are rows
// that follow each other through its samples: of sentences of 20 words a tile of 32 rows would else
// be half empty. Between two samples lie rows whose windows reach from one into the other, or that
// fill up the last windows together; what they give is left unused.
#pragma once

#include <cstdint>

#include "../core/scratch.h"
#include "convolution_input.h"
#include "kernels.h"

namespace seqkernels {

// Windows of one sample in a stretch, and the pools that they fill.
struct WindowSegment {
    int64_t sample;
    Range windows;
    Range pools;
    int64_t row;   // of the stretch, that of its first window
    int64_t part;  // counted over all parts of samples that are cut; -1 where it is a whole sample
};

// Rows of a stretch at least: below, reading the weights again would cost more.
constexpr int64_t least_stretch_rows = 96;
// Rows that one is cut to where its convolution is kept and cuts are alike: so many that few
// windows are the greatest of a part only.
constexpr int64_t most_kept_rows = 512;
// Pools whose windows a stretch has room for at least: where they overlap, the windows that two
// stretches share are computed twice; few, against those of so many.
constexpr int64_t pools_of_stretch = 4;

struct StretchRule {
    int64_t most_rows;    // of a stretch of several samples: whole units; more only to fill up
                          // pool_unit
    int64_t unit;         // rows that cost as much as one
    int64_t together;     // rows that are multiplied together: a segment begins with the first
    int64_t pool_unit;    // pools whose first window is one that a segment may begin with
    int64_t rows_apart;   // between a sample's last window and the next sample's first
    int64_t least_alone;  // windows from which on a sample shares its stretch with no other
    int64_t most_uncut;   // windows of a sample that is not cut
};

// What the product that a stretch is for needs of it.
struct StretchNeeds {
    int64_t pitch;       // numbers from a position to the next
    int64_t unit;        // rows that cost as much as one
    int64_t together;    // windows that are multiplied together, 1, 2 or 4
    int64_t rows_apart;  // between a sample's last window and the next sample's first
    bool is_read_in_place;
    bool cuts_alike;  // whether a sample must be cut at the same windows in any batch
};

// How the windows of a batch are cut: so that the input of a stretch, and the convolution where it
// is kept, stay in L2 while all panels of filters pass, and every thread has a few of them.
template <class Product>
inline StretchRule stretch_rule(const ConvolutionShape& shape, const int64_t* lengths,
                                const StretchNeeds& needs, int threads) {
    using T = typename Product::T;
    constexpr int64_t element_bytes = sizeof(T);
    constexpr int64_t stretch_bytes = Product::cache_bytes / 8;
    constexpr int64_t panel_bytes = Product::vectors * Product::Vector::width * element_bytes;
    const int64_t pitch = larger(1, needs.pitch);
    const int64_t positions = stretch_bytes / (pitch * element_bytes);
    const int64_t fitting =
        positions <= shape.reach() ? 1 : (positions - shape.reach()) / shape.stride + 1;
    StretchRule rule{};
    rule.unit = needs.unit;
    rule.rows_apart = needs.rows_apart;
    rule.together = needs.together;
    rule.pool_unit = 1;
    while (rule.pool_unit * shape.pool_stride % needs.together != 0) rule.pool_unit *= 2;
    int64_t rows = 0;
    for (int64_t n = 0; n < shape.batch; ++n) {
        rows += shape.windows(sample_length(shape, lengths, n)) + rule.rows_apart;
    }
    constexpr int64_t stretches_of_thread = 4;
    const int64_t even = divide_rounding_up(rows, threads * stretches_of_thread);
    rule.most_rows = larger(least_stretch_rows, smaller(fitting, even));
    if (shape.pool_size > 0) {
        // The convolution is kept.
        rule.most_rows = larger(
            smaller(rule.most_rows, stretch_bytes / panel_bytes),
            smaller(larger(1, shape.windows(shape.length)), pools_of_stretch * shape.pool_size));
    }
    rule.most_rows = divide_rounding_up(rule.most_rows, rule.unit) * rule.unit;
    rule.most_uncut = rule.most_rows;
    if (needs.cuts_alike) {
        const int64_t most = larger(least_stretch_rows, smaller(fitting, most_kept_rows));
        rule.most_uncut = divide_rounding_up(most, rule.unit) * rule.unit;
    }
    // To share a stretch, samples that are read in place are copied; and between windows far apart
    // there would be more positions than in them.
    rule.least_alone = shape.stride > shape.reach() ? 1
                       : needs.is_read_in_place     ? least_stretch_rows
                                                    : rule.most_rows + 1;
    return rule;
}

// The positions that a segment's windows read.
static inline Range positions_of(const ConvolutionShape& shape, const WindowSegment& segment) {
    return {window_start(shape, segment.windows.begin),
            window_start(shape, segment.windows.end - 1) + shape.reach()};
}

class WindowStretches {
 public:
    // wanted: by sample, whether it is cut; null for all.
    WindowStretches(const ConvolutionShape& shape, const int64_t* lengths, const StretchRule& rule,
                    const uint8_t* wanted);
    ~WindowStretches();

    int64_t count() const { return count_; }
    Range segments(int64_t stretch) const {
        return {first_segments_.data()[stretch], first_segments_.data()[stretch + 1]};
    }
    int64_t segment_count() const { return segment_count_; }
    int64_t part_count() const { return part_count_; }
    // Rows of the longest stretch.
    int64_t most_rows() const { return most_rows_; }
    int64_t rows(Range segments) const {
        const WindowSegment& last = segment(segments.end - 1);
        return last.row + last.windows.count() - segment(segments.begin).row;
    }
    const WindowSegment& segment(int64_t index) const { return segments_.data()[index]; }

 private:
    const int64_t segment_count_;
    const Scratch<WindowSegment> segments_;
    const Scratch<int64_t> first_segments_;
    int64_t count_ = 0;
    int64_t part_count_ = 0;
    int64_t most_rows_ = 0;
};

// The first position of the window that the sample's next segment begins with; -1 behind the last
// segment.
static inline int64_t next_start(const ConvolutionShape& shape, const int64_t* lengths,
                                 const WindowSegment& segment) {
    const int64_t windows = shape.windows(sample_length(shape, lengths, segment.sample));
    if (shape.pool_size == 0) {
        return segment.windows.end < windows ? window_start(shape, segment.windows.end) : -1;
    }
    const int64_t next = segment.pools.end * shape.pool_stride;
    return segment.pools.end < shape.pools(windows) ? window_start(shape, next) : -1;
}

// Takes note of what no window reads between `end`, behind a segment's last position, and the
// sample's next segment: what all of a sample holds decides how it is multiplied, so that it does
// not matter where it is cut.
template <class Vector, class T, class Magnitude>
inline void judge_up_to_next(const ConvolutionForward<T>& call, const WindowSegment& segment,
                             int64_t end, Magnitude& magnitude) {
    const int64_t behind = larger(end, 0);
    const int64_t next = smaller(next_start(call.shape, call.lengths, segment),
                                 sample_length(call.shape, call.lengths, segment.sample));
    if (next <= behind) return;
    judge_positions<Vector>(call.shape, call.input, segment.sample, behind, next, magnitude);
}

// Marks a sample whose numbers cannot be multiplied as others are.
static inline void leave_out(uint8_t* left_out, int64_t sample) {
    __atomic_store_n(left_out + sample, uint8_t{1}, __ATOMIC_RELAXED);
}
// Whether some thread has.
static inline bool is_left_out(const uint8_t* left_out, int64_t sample) {
    return __atomic_load_n(left_out + sample, __ATOMIC_RELAXED) != 0;
}

}  // namespace seqkernels
