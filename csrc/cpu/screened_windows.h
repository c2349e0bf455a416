// The maxima of a convolution over all time: found among products in one plane of bfloat16, made in
// float32. convolution_windows.h offers the same of products that are all as precise as wanted.
//
// Of all windows and filters only the greatest product of each filter is wanted. By rounding to
// bfloat16, x = x' + r, w = w' + s, the product errs by |x w - x' w'| <= |r| |w| + |x| |s| (Cauchy
// and Schwarz; norms of the window and the filter), some 0.003 |x| |w|, and by what the sums lose.
// What falls short of the best by more cannot be the greatest: mostly all but one or two windows,
// and these are multiplied by vectors of float32, so that
//   * the maximum is that of products in float32, each made alike wherever its window lies, and the
//     first window of the greatest product is found;
//   * it does not matter what else was multiplied: how the work is cut changes no bit.
// Windows that hold what the one before holds (padding) are not multiplied again. A sample of which
// too many windows remain (signals that hardly change), or with numbers whose norms may be out of
// bounds or NaN, is left out, and multiplied in as many planes as the precision asks for; samples
// are cut at the same windows in any batch, so that this depends on the sample alone.
//
// Scratch, owned by the call: that of ConvolutionWindows in one plane, and ScreenedFilters. Given
// to it, for each thread: a stretch of the input in bfloat16 and, unless products read it where it
// lies, in float32, each position in whole cache lines; two numbers for each position, two and a
// mark for each window, and a window that reaches beyond its sample. On each thread's stack, 64 KiB
// of windows that remain.
//
// Cost: the product in one plane, 2 N W F k C FLOPs; 8 operations on every 16 numbers of the input
// and of the filters; of every product a few operations on its vector, in L1; and 2 k C FLOPs for
// each window that remains, which is read from L2. Limit: L2, in all of its parts.
//
// Measured, time over that before, in three planes or by vectors (family 6, model 207, two threads,
// random numbers). A layer: 50 sentences of 56 words, 300 numbers a word, 100 filters of 3: 0.51;
// one 0.64; of 20 words, filters of 3 and of 5: 50 0.69 and 0.72, one 0.98 and 0.84; N 64, L 512, C
// 128, F 128, k 3: 0.40. A bank of 3, 4 and 5, of 56 words 0.63, of 20 0.76. This loop alone,
// before windows were copied to whole lines: N 16, L 1014, C 70, F 256, k 7: 0.4, N 32, L 512, C
// 300, F 256, k 3: 0.46; over that of two planes: 50 sentences 0.93, the others 0.55 to 0.8. Of few
// numbers a window: 50 of 56 words of 32 channels 1.1, of 8 1.9. Samples left out (one thread): 1.1
// to 1.4. Of 50 sentences 1.6 windows a filter remain, of which 1.28 are multiplied, since the most
// promising one is first. Finding and multiplying what remains takes half of the time of 56 words,
// 59 % of that of 20. Products alone, of 900 numbers, 8 sentences and 32 filters in a loop: 64 ns
// where windows lie, 37 to 49 from whole lines, 13 if all is in L1.
//
// Panels of filters are even, so that two threads share 100 filters of a sentence as 48 and 52, not
// as 64 and 36: of 20 words 0.93 to 0.96 of the time, a bank of 3, 4 and 5 0.88 to 0.93. (By
// vectors, and in one plane of bfloat16, nothing was gained so.)
//
// Tried without gain: windows fetched ahead (none), two or four with a filter at once (within 2 %),
// segment after segment (none). In that loop: some filters at a time (none), and 32 channels after
// 32 of all products, so that what they read stays in L1 (42 to 46 ns). Candidates
// sorted by filter in place of a list for each, and looked for row by row, not in marks of many
// rows: 10 % slower.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "convolution_input.h"
#include "convolution_windows.h"
#include "kernels.h"
#include "screened_candidates.h"
#include "screened_filters.h"
#include "tile_product.h"
#include "vector_product.h"
#include "window_stretches.h"

namespace seqkernels {

// planes: of the product that multiplies what is left out
template <class Unit, int planes>
class ScreenedWindows {
 public:
    using Vector = Avx512Vector<float>;
    using Product = TileProduct<Unit, 1>;
    using T = float;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    using Tiles = ConvolutionWindows<Vector, Product>;
    // What multiplies the samples that are left out.
    using Otherwise = ConvolutionWindows<Vector, TileProduct<Unit, planes>>;
    static constexpr int most_rows = Product::rows;
    static constexpr bool joins_segments = true;
    static constexpr bool can_pack_meanwhile = false;
    static constexpr bool are_screened = true;

    // Not of few channels, whose windows have many positions to measure for what they save.
    static bool pays_for(const ConvolutionShape& shape) {
        constexpr int64_t least_channels = 32, least_depth = 128;
        const int64_t depth = checked_product({shape.kernel_size, shape.channels});
        return shape.pool_size == 0 && shape.channels >= least_channels && depth >= least_depth &&
               depth <= most_screened_depth;
    }
    // Of a sample: fewer windows pay where filters are packed quickly, and are long enough.
    bool pays_for(int64_t windows, int64_t /* rows_apart */) const {
        const bool is_quick = shape_.kernel_size <= most_unrolled_taps && shape_.channels >= 128;
        return windows >= (is_quick ? 16 : 24);
    }

    explicit ScreenedWindows(const ConvolutionForward<T>& call)
        : call_(call),
          shape_(call.shape),
          tiles_(call, are_screened),
          filters_(call, tiles_.depths(), tiles_.layout()),
          can_read_(is_read_in_place<T>(shape_, call.input)),
          in_place_(can_read_ && (are_lines(call.input) || !pays_to_copy())),
          pitch_(divide_rounding_up(shape_.channels, Vector::width) * Vector::width) {}

    const PanelLayout<Vector>& layout() const { return tiles_.layout(); }
    StretchRule rule(int threads) const { return tiles_.rule(threads, true); }
    bool rows_stay() const { return tiles_.rows_stay(); }
    void take(const WindowStretches& stretches) {
        stretches_ = &stretches;
        tiles_.take(stretches);
    }

    int64_t packed_elements() const { return tiles_.packed_elements(); }
    int64_t pack_scratch_elements() const { return filters_.pack_elements() / 2; }
    bool pack(Packed* packed, Range panels, T* scratch) const {
        bool are_plain = true;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            auto* const rounded = reinterpret_cast<Packed*>(scratch);
            if (!filters_.pack(packed, panel, rounded)) are_plain = false;
        }
        return are_plain;
    }

    // A stretch as it is multiplied.
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
    int64_t left_elements() const {
        const int64_t numbers = 2 * rows() + 2 * positions() + copied() + tiles_.layout().depth;
        return tiles_.left_elements() + whole_lines(rows()) +
               checked_product({2, whole_lines(numbers)});
    }
    int64_t computed_rows() const { return tiles_.computed_rows(); }

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

    // Not what is copied, to what fills L2 besides: 50 sentences of 56 words up to 2 % slower.
    Fetching fetching(Range segments, int64_t tiles) const {
        return tiles_.fetching(in_place_ ? segments : Range{}, tiles);
    }
    template <class Function>
    static void for_each_tile(int64_t count, Function&& function) {
        Product::for_each_tile(count, function);
    }

    template <class Meanwhile>
    void convolve(Vector* sums, int tile, const Rows& rows, Range segments, int64_t row,
                  const Packed* packed, int64_t panel, Meanwhile&& meanwhile) const {
        tiles_.convolve(sums, tile, rows.tiles, segments, row, packed, panel, meanwhile);
    }

    // The maxima of segments for a panel of filters: take(segment, best, winner), winner being the
    // first windows that they are found in. Samples of which too many windows remain are marked.
    //   convolution: of the segments' windows, as they follow each other
    template <class Take>
    void maxima(Range segments, const Rows& rows, const Vector* convolution, int64_t panel,
                uint8_t* left_out, Take&& take) const {
        const int64_t vectors = layout().units_of(panel);
        for (int64_t i = segments.begin; i < segments.end; i += Candidates::most_segments) {
            const Range some{i, smaller(segments.end, i + Candidates::most_segments)};
            Candidates candidates;
            for (int64_t next = some.begin; next < some.end; ++next) {
                const WindowSegment& segment = stretches_->segment(next);
                if (is_left_out(left_out, segment.sample)) continue;
                const Vector* of_segment = convolution + (segment.row - rows.first_row) * vectors;
                bool are_few = false;
                with_constant<Product::vectors>(vectors, [&](auto v) {
                    are_few = screen<v>(segment, rows, of_segment, panel, next - i, candidates);
                });
                if (!are_few) leave_out(left_out, segment.sample);
            }
            choose(some, rows, panel, candidates, take);
        }
    }

 private:
    static constexpr int64_t panel_width = Product::vectors * Vector::width;

    using Candidates = ScreenedCandidates<Vector, Product::vectors>;

    // Of each segment and filter the greatest candidate.
    template <class Take>
    void choose(Range segments, const Rows& rows, int64_t panel, const Candidates& candidates,
                Take&& take) const {
        constexpr int64_t most_segments = Candidates::most_segments;
        T values[most_segments][panel_width] = {};
        int32_t windows[most_segments][panel_width];
        std::memset(windows, 0xFF, sizeof(windows));
        SampleRows<T> numbers[most_segments];
        for (int64_t i = 0; i < segments.count(); ++i) {
            numbers[i] = numbers_of(stretches_->segment(segments.begin + i), rows);
        }
        const auto judge = [&](int64_t segment, int64_t filter, int32_t window) {
            const auto [window_numbers, stride] =
                numbers_of_window(numbers[segment], window, rows.gathered);
            const T value =
                filters_.product(layout().first_column(panel) + filter, window_numbers, stride);
            T& greatest = values[segment][filter];
            int32_t& winner = windows[segment][filter];
            if (winner >= 0 && (value < greatest || (value == greatest && window > winner))) return;
            greatest = value;
            winner = window;
        };
        const auto judge_first = [&](int64_t filter) {
            for (int64_t i = 0; i < segments.count(); ++i) {
                if (candidates.count(i, filter) > 0) {
                    judge(i, filter, candidates.of(i, filter)[0].window);
                }
            }
        };
        const auto judge_others = [&](int64_t filter) {
            for (int64_t i = 0; i < segments.count(); ++i) {
                const typename Candidates::Place* const places = candidates.of(i, filter);
                for (int64_t place = 1; place < candidates.count(i, filter); ++place) {
                    if (places[place].most >= values[i][filter]) {
                        judge(i, filter, places[place].window);
                    }
                }
            }
        };
        // First the most promising one of each: others may fall short of it. That is asked after
        // the next filter's, so that no branch waits for a product, and the filter is still in L1.
        const int64_t filters = layout().units_of(panel) * Vector::width;
        judge_first(0);
        for (int64_t filter = 1; filter < filters; ++filter) {
            judge_first(filter);
            judge_others(filter - 1);
        }
        judge_others(filters - 1);
        for (int64_t i = 0; i < segments.count(); ++i) {
            Vector best[Product::vectors], winner[Product::vectors];
            for (int64_t v = 0; v < layout().units_of(panel); ++v) {
                T bits[Vector::width];
                std::memcpy(bits, windows[i] + v * Vector::width, sizeof(bits));
                best[v] = Vector::load(values[i] + v * Vector::width);
                winner[v] = Vector::load(bits);
            }
            take(stretches_->segment(segments.begin + i), best, winner);
        }
    }

    // Finds the candidates of a segment. Returns whether they are few.
    template <int V>
    bool screen(const WindowSegment& segment, const Rows& rows, const Vector* convolution,
                int64_t panel, int64_t place, Candidates& candidates) const {
        const int64_t first = segment.row - rows.first_row, count = segment.windows.count();
        const float* const norms = rows.norms + first;
        const uint8_t* const repeats = rows.repeats + first;
        const int64_t column = layout().first_column(panel);
        __m512 bounds[V], least[V];
        uint16_t wanted[V], of_zeros[V];
        for (int v = 0; v < V; ++v) {
            bounds[v] = filters_.bounds(column + v * Vector::width, rows.lost[first]);
            least[v] = _mm512_set1_ps(-__builtin_inff());
            wanted[v] = Vector::first(shape_.filters - column - v * Vector::width);
            of_zeros[v] = _mm512_cmp_ps_mask(bounds[v], _mm512_setzero_ps(), _CMP_EQ_OQ);
        }
        for (int64_t row = 0; row < count; ++row) {
            const __m512 norm = _mm512_set1_ps(norms[row]);
            for (int v = 0; v < V; ++v) {
                least[v] = _mm512_max_ps(
                    least[v], _mm512_fnmadd_ps(norm, bounds[v], convolution[row * V + v].value));
            }
        }
        float bound_of[V * Vector::width];
        for (int v = 0; v < V; ++v) _mm512_storeu_ps(bound_of + v * Vector::width, bounds[v]);
        candidates.begin_segment(place, V * Vector::width * (2 + count / 16));
        // Marks of many rows first: whether a row has any cannot be foreseen.
        constexpr int64_t rows_marked = 64 / V;
        static_assert(64 % V == 0, "whole words of marks");
        for (int64_t begin = 0; begin < count; begin += rows_marked) {
            alignas(uint64_t) uint16_t marks[rows_marked * V] = {};
            for (int64_t row = begin; row < smaller(count, begin + rows_marked); ++row) {
                const __m512 norm = _mm512_set1_ps(norms[row]);
                const auto new_ones = static_cast<uint16_t>(repeats[row] - 1);
                for (int v = 0; v < V; ++v) {
                    const __m512 most =
                        _mm512_fmadd_ps(norm, bounds[v], convolution[row * V + v].value);
                    marks[(row - begin) * V + v] = static_cast<uint16_t>(
                        _mm512_cmp_ps_mask(most, least[v], _CMP_GE_OQ) & wanted[v] & new_ones);
                    // For a filter of zeros the first window is as great as any.
                    if (row == 0) wanted[v] = static_cast<uint16_t>(wanted[v] & ~of_zeros[v]);
                }
            }
            for (int64_t word = 0; word < rows_marked * V / 4; ++word) {
                uint64_t bits;
                std::memcpy(&bits, marks + 4 * word, sizeof(bits));
                for (; bits != 0; bits &= bits - 1) {
                    const int64_t at = word * 64 + __builtin_ctzll(bits);
                    const int64_t row = begin + at / (V * Vector::width);
                    const int64_t filter = at % (V * Vector::width);
                    const auto* products = reinterpret_cast<const float*>(convolution + row * V);
                    const float most =
                        __builtin_fmaf(norms[row], bound_of[filter], products[filter]);
                    const auto window = static_cast<int32_t>(segment.windows.begin + row);
                    if (candidates.take(filter, {window, most})) {
                        return false;
                    }
                }
            }
        }
        return true;
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

    // A segment's numbers in float32: where they lie, and as products read them.
    SampleRows<T> given_numbers_of(const WindowSegment& segment) const {
        const SequenceView& input = call_.input;
        return {static_cast<const T*>(input.numbers.data) + segment.sample * input.stride_batch,
                input.stride_length, real_positions_of(segment)};
    }
    SampleRows<T> numbers_of(const WindowSegment& segment, const Rows& rows) const {
        if (in_place_) return given_numbers_of(segment);
        return {copy_of(segment, rows), pitch_, real_positions_of(segment)};
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
                // Where the next position goes, in L2, so that no store waits for it: 3.9 us for 56
                // positions of 300 channels, else, to 2.7.
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
    Tiles tiles_;
    const ScreenedFilters<Vector> filters_;
    const bool can_read_;  // numbers, in float32, where they lie
    const bool in_place_;  // products do so
    const int64_t pitch_;  // of copies
    const WindowStretches* stretches_ = nullptr;
};

}  // namespace seqkernels
