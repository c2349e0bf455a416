#include "window_stretches.h"

namespace seqkernels {
namespace {

// Calls take(segment) for every segment in order; a stretch begins at row 0.
template <class Take>
void cut(const ConvolutionShape& shape, const int64_t* lengths, const StretchRule& rule,
         const uint8_t* wanted, Take&& take) {
    const bool is_over_time = shape.pool_size == 0;
    // What a sample is cut into: windows, or pools.
    const int64_t most =
        is_over_time ? rule.most_uncut : (rule.most_rows - shape.pool_size) / shape.pool_stride + 1;
    const int64_t unit = is_over_time ? rule.unit : rule.pool_unit;
    int64_t next_row = rule.most_rows, next_part = 0;
    for (int64_t n = 0; n < shape.batch; ++n) {
        const int64_t windows = shape.windows(sample_length(shape, lengths, n));
        const int64_t pools = shape.pools(windows);
        if (pools == 0 || (wanted != nullptr && wanted[n] == 0)) continue;
        const int64_t count = is_over_time ? windows : pools;
        const int64_t parts = divide_rounding_up(count, most);
        const int64_t even = divide_rounding_up(count, parts);
        const int64_t each = parts == 1 ? count : divide_rounding_up(even, unit) * unit;
        for (int64_t begin = 0; begin < count; begin += each) {
            const Range part{begin, smaller(count, begin + each)};
            WindowSegment segment{n, part, {0, 1}, next_row, parts == 1 ? -1 : next_part++};
            if (!is_over_time) {
                segment.pools = part;
                segment.windows = {part.begin * shape.pool_stride,
                                   (part.end - 1) * shape.pool_stride + shape.pool_size};
            }
            const int64_t rows = segment.windows.count();
            const bool is_alone = rows >= rule.least_alone;
            if (is_alone || segment.row + rows > rule.most_rows) segment.row = 0;
            take(segment);
            const int64_t taken = divide_rounding_up(rows, rule.together) * rule.together;
            next_row = is_alone ? rule.most_rows : segment.row + taken + rule.rows_apart;
        }
    }
}

int64_t count_segments(const ConvolutionShape& shape, const int64_t* lengths,
                       const StretchRule& rule, const uint8_t* wanted) {
    int64_t count = 0;
    cut(shape, lengths, rule, wanted, [&](const WindowSegment&) { ++count; });
    return count;
}

}  // namespace

WindowStretches::WindowStretches(const ConvolutionShape& shape, const int64_t* lengths,
                                 const StretchRule& rule, const uint8_t* wanted)
    : segment_count_(count_segments(shape, lengths, rule, wanted)),
      segments_(segment_count_),
      first_segments_(segment_count_ + 1) {
    int64_t index = 0;
    cut(shape, lengths, rule, wanted, [&](const WindowSegment& segment) {
        if (segment.row == 0) first_segments_.data()[count_++] = index;
        segments_.data()[index++] = segment;
        if (segment.part >= 0) part_count_ = segment.part + 1;
        most_rows_ = larger(most_rows_, segment.row + segment.windows.count());
    });
    first_segments_.data()[count_] = segment_count_;
}

WindowStretches::~WindowStretches() = default;

}  // namespace seqkernels
