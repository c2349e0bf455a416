// What the maxima of a convolution are screened by (screened_windows.h), of the input: its numbers
// rounded to bfloat16, as tiles read them, and in float32, as products do; the norms of windows,
// and of what rounding takes from them; which windows hold what the one before holds.
//
// Scratch, given to it, for each thread: a stretch of the input in bfloat16 and, unless products
// read it where it lies, in float32, each position in whole cache lines; two numbers for each
// position, two and a mark for each window, and a window that reaches beyond its sample.
//
// Cost: 8 operations on every 16 numbers. Limit: L2, to which copies go.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "convolution_input.h"
#include "kernels.h"
#include "product.h"
#include "screened_filters.h"
#include "vector_product.h"
#include "window_depths.h"
#include "window_stretches.h"

namespace seqkernels {

// Tiles: ConvolutionWindows in one plane.
template <class Tiles>
class ScreenedInput {
    using Vector = typename Tiles::Vector;
    using T = float;
    using Left = typename Tiles::Left;

 public:
    ScreenedInput(const ConvolutionForward<T>& call, const Tiles& tiles)
        : call_(call),
          shape_(call.shape),
          tiles_(tiles),
          can_read_(is_read_in_place<T>(shape_, call.input)),
          in_place_(can_read_ && (are_lines(call.input) || !pays_to_copy())),
          pitch_(divide_rounding_up(shape_.channels, Vector::width) * Vector::width) {}

    // The stretches that it will be of; what follows is called after this.
    void take(const WindowStretches& stretches) { stretches_ = &stretches; }
    // Whether products read copies.
    bool is_copied() const { return !in_place_; }

    // A stretch, as it is multiplied and judged.
    struct Rows {
        SampleRows<Left> tiles;
        Left* plane;       // which they are of
        float* norms;      // by row, the window's, enlarged
        uint8_t* repeats;  // by row, whether the window holds what the one before holds
        float* lost;       // by a segment's first row: of a norm, what rounding takes at most
        float* squares;    // by position, as they follow each other in the tiles' plane
        float* rests;
        float* numbers;   // the same positions in float32, if they are not read in place
        float* gathered;  // a window that reaches beyond its sample
        int64_t first_row;
    };
    // Of a thread's scratch.
    int64_t elements() const {
        const int64_t numbers = 2 * rows() + 2 * positions() + copied() + tiles_.layout().depth;
        return tiles_.left_elements() + whole_lines(rows()) +
               checked_product({2, whole_lines(numbers)});
    }

    Rows ready(Range segments, Left* scratch, uint8_t* left_out) const {
        const WindowSegment& first = stretches_->segment(segments.begin);
        Rows result{};
        result.plane = scratch;
        result.tiles = {scratch, tiles_.depths().pitch(), {}};
        result.first_row = first.row;
        result.norms = reinterpret_cast<float*>(scratch + tiles_.left_elements());
        result.lost = result.norms + rows();
        result.squares = result.lost + rows();
        result.rests = result.squares + positions();
        result.numbers = result.rests + positions();
        result.gathered = result.numbers + copied();
        result.repeats = reinterpret_cast<uint8_t*>(result.gathered + tiles_.layout().depth);
        for (int64_t i = segments.begin; i < segments.end; ++i) {
            const WindowSegment& segment = stretches_->segment(i);
            if (!can_read_) copy(segment, result);
            round(segment, result);
            if (!measure(segment, result)) leave_out(left_out, segment.sample);
        }
        return result;
    }

    // A segment's numbers in float32, as products read them.
    SampleRows<T> numbers_of(const WindowSegment& segment, const Rows& rows) const {
        if (in_place_) return given_numbers_of(segment);
        return {copy_of(segment, rows), pitch_, real_positions_of(segment)};
    }
    // A window's numbers and how far its taps lie apart: where they lie, or, if some lie beyond the
    // sample, in `gathered`.
    std::pair<const T*, int64_t> numbers_of_window(const SampleRows<T>& numbers, int64_t window,
                                                   T* gathered) const {
        const int64_t start = window_start(shape_, window), channels = shape_.channels;
        if (numbers.has(start) && numbers.has(start + shape_.reach() - 1)) {
            return {numbers.at(start), shape_.dilation * numbers.stride};
        }
        for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
            const int64_t position = start + tap * shape_.dilation;
            T* const target = gathered + tap * channels;
            const auto bytes = static_cast<std::size_t>(channels) * sizeof(T);
            if (numbers.has(position)) {
                std::memcpy(target, numbers.at(position), bytes);
            } else {
                std::memset(target, 0, bytes);
            }
        }
        return {gathered, channels};
    }

 private:
    static int64_t whole_lines(int64_t count) {
        return divide_rounding_up(count, tile_depth) * tile_depth;
    }
    int64_t rows() const { return whole_lines(stretches_->most_rows()); }
    // Of a stretch, and of those that copies in float32 are made of.
    int64_t positions() const {
        return whole_lines(larger(0, stretches_->most_rows() - 1) * tiles_.window_stride() +
                           shape_.reach());
    }
    int64_t copied() const { return in_place_ ? 0 : checked_product({positions(), pitch_}); }

    // Where in the plane the positions that a segment's windows read begin; those that are real.
    int64_t place_of(const WindowSegment& segment, const Rows& rows) const {
        return (segment.row - rows.first_row) * tiles_.window_stride();
    }
    Range real_positions_of(const WindowSegment& segment) const {
        return real_positions(shape_, call_.lengths, segment.sample, positions_of(shape_, segment));
    }

    // Whether rows of channels begin cache lines.
    static bool are_lines(const SequenceView& input) {
        const auto address = reinterpret_cast<uintptr_t>(input.numbers.data);
        return address % cache_line_bytes == 0 && input.stride_length % Vector::width == 0 &&
               input.stride_batch % Vector::width == 0;
    }
    // Whether numbers are read so often that it pays to copy them to whole lines: with a ninth of
    // the reads that are asked for here 14 % are lost, with a fifth 3, with half of them nothing.
    bool pays_to_copy() const {
        constexpr int64_t least_reads = 3;
        return shape_.filters >=
               divide_rounding_up(least_reads * shape_.length, shape_.kernel_size);
    }

    // A segment's numbers in float32, where they lie.
    SampleRows<T> given_numbers_of(const WindowSegment& segment) const {
        const SequenceView& input = call_.input;
        return {static_cast<const T*>(input.numbers.data) + segment.sample * input.stride_batch,
                input.stride_length, real_positions_of(segment)};
    }
    // Where a segment's position 0 is in the copies, or would be.
    T* copy_of(const WindowSegment& segment, const Rows& rows) const {
        const int64_t first = place_of(segment, rows) - positions_of(shape_, segment).begin;
        return rows.numbers + first * pitch_;
    }
    void copy(const WindowSegment& segment, const Rows& rows) const {
        typename VectorProduct<Vector>::Magnitude magnitude;
        const auto [from, to] = real_positions_of(segment);
        pack_positions<Vector, VectorProduct<Vector>>(
            shape_, call_.input, segment.sample, from, to, pitch_,
            copy_of(segment, rows) + from * pitch_, 0, magnitude);
    }

    // Makes the segment's part of the plane, the squares of its positions and, where numbers are
    // read but not multiplied where they lie, their copies.
    void round(const WindowSegment& segment, const Rows& rows) const {
        const bool copies = can_read_ && !in_place_;
        const SampleRows<T> numbers =
            can_read_ ? given_numbers_of(segment) : numbers_of(segment, rows);
        T* const kept = copies ? copy_of(segment, rows) : nullptr;
        const Range all = positions_of(shape_, segment);
        const int64_t pitch = tiles_.depths().pitch(), place = place_of(segment, rows);
        Left* target = rows.plane + place * pitch;
        const bool all_are_held = shape_.stride <= shape_.reach();
        for (int64_t position = all.begin; position < all.end; ++position, target += pitch) {
            const int64_t at = place + position - all.begin;
            // Blocks of depths may reach beyond a window, to what none holds: that may be NaN.
            const bool is_held =
                all_are_held || (position - all.begin) % shape_.stride < shape_.reach();
            SquareSums sums;
            if (is_held && numbers.has(position)) {
                if (copies) {
                    sums = round<true>(numbers.at(position), target, kept + position * pitch_);
                } else {
                    sums = round<false>(numbers.at(position), target, nullptr);
                }
            } else {
                std::memset(static_cast<void*>(target), 0,
                            static_cast<std::size_t>(pitch) * sizeof(Left));
            }
            rows.squares[at] = _mm512_reduce_add_ps(sums.numbers);
            rows.rests[at] = _mm512_reduce_add_ps(sums.rests);
        }
        std::memset(static_cast<void*>(target), 0,
                    static_cast<std::size_t>(tiles_.depths().beyond()) * sizeof(Left));
    }

    // The same of one position.
    template <bool copies>
    SquareSums round(const T* given, Left* target, T* kept) const {
        const int64_t channels = shape_.channels, pitch = tiles_.depths().pitch();
        SquareSums sums;
        int64_t channel = 0;
        for (; channel + Vector::width <= channels; channel += Vector::width) {
            if (copies) {
                // The lines that the next position goes to are in L2, and stores would wait for
                // them (this loop alone, 56 positions of 300 channels: 3.9 us, so 2.7).
                __builtin_prefetch(kept + pitch_ + channel, 1);
                if (channel % tile_depth == 0) __builtin_prefetch(target + pitch + channel, 1);
            }
            const __m512 some = _mm512_loadu_ps(given + channel);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + channel), sums.take(some));
            if (copies) _mm512_storeu_ps(kept + channel, some);
        }
        for (; channel < pitch; channel += Vector::width) {
            const __m512 some =
                _mm512_maskz_loadu_ps(Vector::first(channels - channel), given + channel);
            _mm256_mask_storeu_epi16(target + channel, Vector::first(pitch - channel),
                                     sums.take(some));
            if (copies && channel < pitch_) _mm512_storeu_ps(kept + channel, some);
        }
        return sums;
    }

    // The norms of the segment's windows, and which of them repeat others. Returns whether bounds
    // hold for all of them.
    bool measure(const WindowSegment& segment, const Rows& rows) const {
        const int64_t first = segment.row - rows.first_row, count = segment.windows.count();
        const int64_t stride = tiles_.window_stride(), dilation = shape_.dilation;
        const float* const squares = rows.squares + place_of(segment, rows);
        const float* const rests = rows.rests + place_of(segment, rows);
        // A sample is shorter than 2^31 positions.
        const __m512i steps = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
            _mm512_set1_epi32(static_cast<int>(stride)));
        const __m512 margin = _mm512_set1_ps(norm_margin), none = _mm512_setzero_ps();
        __m512 lost = none;
        bool are_plain = true;
        for (int64_t i = 0; i < count; i += Vector::width) {
            const __mmask16 here = Vector::first(count - i);
            __m512 square = none, rest = none;
            for (int64_t tap = 0; tap < shape_.kernel_size; ++tap) {
                const int64_t at = i * stride + tap * dilation;
                const auto of_positions = [&](const float* numbers) {
                    return _mm512_mask_i32gather_ps(none, here, steps, numbers + at, 4);
                };
                square = _mm512_add_ps(square, of_positions(squares));
                rest = _mm512_add_ps(rest, of_positions(rests));
            }
            // Of NaN the least.
            const __m512 norm = _mm512_max_ps(_mm512_mul_ps(margin, _mm512_sqrt_ps(square)),
                                              _mm512_set1_ps(least_norm));
            const __mmask16 of_bounds =
                _mm512_cmp_ps_mask(square, none, _CMP_GE_OQ) &
                _mm512_cmp_ps_mask(norm, _mm512_set1_ps(most_norm), _CMP_LE_OQ);
            if ((here & ~of_bounds) != 0) are_plain = false;
            // Squares that vanish are of a norm far below.
            const __m512 error = _mm512_max_ps(_mm512_mul_ps(margin, _mm512_sqrt_ps(rest)),
                                               _mm512_set1_ps(0x1p-60f));
            lost = _mm512_mask_max_ps(lost, here, _mm512_div_ps(error, norm), lost);
            _mm512_mask_storeu_ps(rows.norms + first + i, here, norm);
        }
        rows.lost[first] = _mm512_reduce_max_ps(lost);
        const SampleRows<T> numbers = numbers_of(segment, rows);
        for (int64_t i = 0; i < count; ++i) {
            // Most differ in their last positions' squares.
            const float* const last = squares + i * stride + (shape_.kernel_size - 1) * dilation;
            rows.repeats[first + i] =
                i > 0 && last[0] == last[-stride] && repeats(numbers, segment.windows.begin + i);
        }
        return are_plain;
    }
    bool repeats(const SampleRows<T>& numbers, int64_t window) const {
        const int64_t start = window_start(shape_, window);
        for (int64_t tap = shape_.kernel_size - 1; tap >= 0; --tap) {
            const int64_t position = start + tap * shape_.dilation;
            const int64_t before = position - shape_.stride;
            if (numbers.has(position) != numbers.has(before)) return false;
            if (numbers.has(position) &&
                std::memcmp(numbers.at(position), numbers.at(before),
                            static_cast<std::size_t>(shape_.channels) * sizeof(T)) != 0) {
                return false;
            }
        }
        return true;
    }

    const ConvolutionForward<T>& call_;
    const ConvolutionShape& shape_;
    const Tiles& tiles_;
    const bool can_read_;  // numbers, in float32, where they lie
    const bool in_place_;  // products do so
    const int64_t pitch_;  // of copies
    const WindowStretches* stretches_ = nullptr;
};

}  // namespace seqkernels
