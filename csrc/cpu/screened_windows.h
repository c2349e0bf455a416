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
// to it, for each thread: that of ScreenedInput. On each thread's stack, 64 KiB of windows that
// remain.
//
// Cost: the product in one plane, 2 N W F k C FLOPs; 8 operations on every 16 numbers of the
// filters; of every product a few operations on its vector, in L1 or, of several panels, L2; and
// 2 k C FLOPs for each window that remains, which is read from L2. Limit: L2, in all of its parts.
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
// 32 of all products, so that what they read stays in L1 (42 to 46 ns). Candidates sorted by filter
// in place of a list for each, and looked for row by row, not in marks of many rows: 10 % slower.
// Stretches of twice the bytes: 50 sentences of 56 words 2 to 7 % slower, N 32, L 512, C 300, F 256
// 6 % faster.
#pragma once

#include <cstdint>
#include <cstring>

#include "convolution_input.h"
#include "convolution_windows.h"
#include "kernels.h"
#include "screened_candidates.h"
#include "screened_filters.h"
#include "screened_input.h"
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
    using Input = ScreenedInput<Tiles>;
    using Rows = typename Input::Rows;
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
        : shape_(call.shape),
          tiles_(call, are_screened),
          filters_(call, tiles_.depths(), tiles_.layout()),
          input_(call, tiles_) {}

    const PanelLayout<Vector>& layout() const { return tiles_.layout(); }
    StretchRule rule(int threads) const { return tiles_.rule(threads, true); }
    bool rows_stay() const { return tiles_.rows_stay(); }
    void take(const WindowStretches& stretches) {
        stretches_ = &stretches;
        tiles_.take(stretches);
        input_.take(stretches);
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

    int64_t left_elements() const { return input_.elements(); }
    int64_t computed_rows() const { return tiles_.computed_rows(); }

    // What the windows of these segments read. left_out: by sample, marked if their products cannot
    // be bounded.
    Rows ready(Range segments, Left* scratch, uint8_t* left_out) const {
        return input_.ready(segments, scratch, left_out);
    }
    // Where products read copies, nothing: L2 is full of them (50 sentences of 56 words up to 2 %
    // slower with it).
    Fetching fetching(Range segments, int64_t tiles) const {
        return tiles_.fetching(input_.is_copied() ? Range{} : segments, tiles);
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
            numbers[i] = input_.numbers_of(stretches_->segment(segments.begin + i), rows);
        }
        const auto judge = [&](int64_t segment, int64_t filter, int32_t window) {
            const auto [window_numbers, stride] =
                input_.numbers_of_window(numbers[segment], window, rows.gathered);
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

    const ConvolutionShape& shape_;
    Tiles tiles_;
    const ScreenedFilters<Vector> filters_;
    Input input_;
    const WindowStretches* stretches_ = nullptr;
};

}  // namespace seqkernels
