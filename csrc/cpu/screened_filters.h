// The filters of a convolution whose products are screened (screened_windows.h): packed in one
// plane of bfloat16, and what bounds the error of their products; and their products in float32.
//
// 16 filters are taken at a time: their taps put in order (tap_order.h), rounded, and transposed as
// words of two numbers; where each tap fills whole blocks of depths, 32 channels after 32. Filters
// in float32 that lie tap after tap are multiplied where they lie. Others are left in that order as
// well, but of few samples those that lie channel after channel are put in order once more.
//
// Scratch, owned by the call: the filters in that order, if they are left so; two numbers for each.
// Given to it, for each thread: 16 filters as they are rounded, or 32 channels of them.
//
// Cost: of 16 numbers of a filter 8 operations, ceil(k / 2) permutations and 4 steps of a
// transposition. Limit: the vector units, and what L2 gives. Measured, of 20 words of 300 numbers,
// 100 filters of 3 / of 5, one thread, all of the kernel: 41 us / 67; with float32 packed, read
// again and transposed twice 62 / 107; by vectors (vector_product.h) 44 / 75.
//
// Tried without gain: products with kept filters 16 channels after 16, of each all taps, as the
// others are read (3 to 5 % of 50 sentences' time). What is to be rounded passed to a lambda, which
// GCC left out of line: half as slow again.
#pragma once

#include <cstdint>

#include "../core/scratch.h"
#include "product.h"
#include "tap_order.h"
#include "tile_panels.h"
#include "tile_planes.h"
#include "vector_avx512.h"
#include "window_depths.h"

namespace seqkernels {

// What norms, each of up to most_screened_depth numbers, are enlarged by: more than the errors of
// adding up their squares.
constexpr float norm_margin = 1.01f;
constexpr int64_t most_screened_depth = 1 << 18;
// Norms that the bounds hold for: below, squares that vanish would count; above, products overflow.
constexpr float least_norm = 0x1p-40f, most_norm = 0x1p60f;

// Of 16 numbers their squares, and those of what rounding to bfloat16 takes from them, are added to
// sums; returns them rounded.
struct SquareSums {
    __m512 numbers = _mm512_setzero_ps();
    __m512 rests = _mm512_setzero_ps();

    [[gnu::always_inline]] __m256i take(__m512 given) {
        const __m256i rounded = rounded_to_bfloat16(given);
        const __m512 rest = _mm512_sub_ps(given, widened_bfloat16(rounded));
        numbers = _mm512_fmadd_ps(given, given, numbers);
        rests = _mm512_fmadd_ps(rest, rest, rests);
        return rounded;
    }
};

template <class Vector>
class ScreenedFilters {
 public:
    ScreenedFilters(const ConvolutionForward<float>& call, const WindowDepths& depths,
                    const PanelLayout<Vector>& layout)
        : shape_(call.shape),
          weight_(call.weight),
          layout_(layout),
          taps_(shape_.kernel_size),
          are_rows_(weight_.numbers.is<float>() && weight_.stride_channel == 1),
          goes_by_turns_(!are_rows_ && weight_.stride_tap == 1 && weight_.stride_channel == taps_ &&
                         taps_ <= most_unrolled_taps),
          keeps_rows_(!are_rows_ && (!goes_by_turns_ || !weight_.numbers.is<float>() ||
                                     shape_.batch >= least_batch_of_rows)),
          fills_taps_(depths.has_gaps()),
          line_(fills_taps_ ? tile_depth : depths.blocks() * tile_depth),
          pitch_(divide_rounding_up(shape_.channels, Vector::width) * Vector::width),
          last_(Vector::first(shape_.channels % Vector::width)),
          stride_filter_(are_rows_ ? weight_.stride_filter : taps_ * pitch_),
          stride_tap_(are_rows_ ? weight_.stride_tap : pitch_),
          numbers_(keeps_rows_ ? checked_product({layout.vectors(), Vector::width, taps_, pitch_})
                               : 0),
          norms_(layout.vectors() * Vector::width),
          errors_(layout.vectors() * Vector::width) {}

    int64_t pack_elements() const {
        return checked_product({fills_taps_ ? taps_ : 1, Vector::width, line_});
    }
    // Packs a panel, and takes note of its filters. scratch: pack_elements(). Returns whether the
    // bounds hold for all of them.
    bool pack(Bfloat16* packed, int64_t panel, Bfloat16* scratch) const {
        bool are_plain = true;
        for (int64_t v = 0; v < layout_.units_of(panel); ++v) {
            const int64_t first = layout_.first_column(panel) + v * Vector::width;
            const auto lines_of = [&](int64_t block) {
                return Panels::lines_of(packed, layout_, panel, v, block);
            };
            with_numbers<float>(weight_.numbers, [&](const auto* numbers) {
                const auto* const filters = numbers + first * weight_.stride_filter;
                if (!pack_vector(filters, first, scratch, lines_of)) are_plain = false;
            });
        }
        Panels::mark(packed, layout_, panel, are_plain);
        return are_plain;
    }

    // Of a vector of filters, what the norm of a window is multiplied with to bound the error of
    // its product, if rounding takes no more than `lost` times its norm from it.
    __m512 bounds(int64_t filter, float lost) const {
        return _mm512_fmadd_ps(_mm512_set1_ps(lost), _mm512_loadu_ps(norms_.data() + filter),
                               _mm512_loadu_ps(errors_.data() + filter));
    }

    // A filter's product with a window whose taps lie `stride` numbers apart: to the bit the same,
    // however the filter is read.
    float product(int64_t filter, const float* window, int64_t stride) const {
        if (keeps_rows_ || are_rows_) return product_with_row(filter, window, stride);
        float result = 0;
        with_constant<most_unrolled_taps>(
            taps_, [&](auto taps) { result = product_in_order<taps>(filter, window, stride); });
        return result;
    }

 private:
    using Panels = TilePanels<1>;
    // From so many samples on it is worth it to write the filters in float32 as products read them.
    static constexpr int64_t least_batch_of_rows = 4;

    // A filter tap after tap, stride_tap_ apart.
    const float* row_of(int64_t filter) const {
        const float* const rows =
            are_rows_ ? static_cast<const float*>(weight_.numbers.data) : numbers_.data();
        return rows + filter * stride_filter_;
    }
    float* kept_row(int64_t filter) const { return numbers_.data() + filter * stride_filter_; }

    template <class Number, class LinesOf>
    bool pack_vector(const Number* filters, int64_t first, Bfloat16* scratch,
                     LinesOf&& lines_of) const {
        const int64_t count = smaller(Vector::width, shape_.filters - first);
        SquareSums sums[Vector::width];
        for (int64_t i = 0; i < count && keeps_rows_ && !goes_by_turns_; ++i) {
            filter_by_taps<Vector>(weight_, filters + i * weight_.stride_filter, taps_,
                                   shape_.channels, kept_row(first + i), pitch_);
        }
        const int64_t chunk = fills_taps_ ? tile_depth : shape_.channels;
        const int64_t stride_tap = fills_taps_ ? Panels::tile_numbers : shape_.channels;
        for (int64_t begin = 0; begin < shape_.channels; begin += chunk) {
            for (int64_t i = 0; i < count; ++i) {
                const Rounding round{scratch + i * line_ - begin, stride_tap, sums + i,
                                     fills_taps_ ? begin + tile_depth : shape_.channels};
                const Range channels{begin, begin + chunk};
                if (!goes_by_turns_) {
                    take_row(row_of(first + i), channels, round);
                    continue;
                }
                with_constant<most_unrolled_taps>(taps_, [&](auto taps) {
                    take_in_order<taps>(filters + i * weight_.stride_filter, first + i, channels,
                                        round);
                });
            }
            const int64_t runs = fills_taps_ ? taps_ : 1;
            const int64_t blocks = fills_taps_ ? 1 : line_ / tile_depth;
            const int64_t of_tap = divide_rounding_up(shape_.channels, tile_depth);
            for (int64_t run = 0; run < runs; ++run) {
                for (int64_t block = 0; block < blocks; ++block) {
                    const int64_t depth = fills_taps_ ? run * of_tap + begin / tile_depth : block;
                    store_block(scratch + run * Panels::tile_numbers + block * tile_depth, count,
                                first_depths(layout_.depth - depth * tile_depth), lines_of(depth));
                }
            }
        }
        bool are_plain = true;
        for (int64_t i = 0; i < Vector::width; ++i) {
            const bool is_bound = bound(first + i, sums[i]);
            if (i < count && !is_bound && !is_zero(filters + i * weight_.stride_filter)) {
                are_plain = false;
            }
        }
        return are_plain;
    }

    // Where a filter's numbers are left as they are rounded: no further than to channel `end`.
    struct Rounding {
        Bfloat16* target;
        int64_t stride_tap;
        SquareSums* sums;
        int64_t end;

        [[gnu::always_inline]] void take(int64_t tap, int64_t channel, Vector numbers) const {
            _mm256_mask_storeu_epi16(target + tap * stride_tap + channel,
                                     Vector::first(end - channel), sums->take(numbers.value));
        }
    };

    // Rounds some channels of a filter, and zeros beyond the last.
    template <int taps, class Number>
    void take_in_order(const Number* filter, int64_t index, Range channels,
                       const Rounding& round) const {
        for (int64_t channel = channels.begin; channel < channels.end; channel += Vector::width) {
            Vector vectors[taps];
            // So many filters by turns are more than is fetched ahead without being asked for.
            for (int i = 0; i < taps; ++i) {
                __builtin_prefetch(filter + (channel + tile_depth) * taps + i * Vector::width);
            }
            load_by_taps(filter + channel * taps, shape_.channels - channel, vectors);
            if (keeps_rows_ && channel < shape_.channels) {
                for (int tap = 0; tap < taps; ++tap) {
                    vectors[tap].store(kept_row(index) + tap * pitch_ + channel);
                }
            }
            for (int tap = 0; tap < taps; ++tap) round.take(tap, channel, vectors[tap]);
        }
    }
    void take_row(const float* row, Range channels, const Rounding& round) const {
        for (int64_t channel = channels.begin; channel < channels.end; channel += Vector::width) {
            for (int64_t tap = 0; tap < taps_; ++tap) {
                round.take(tap, channel,
                           load_up_to<Vector>(row + tap * stride_tap_ + channel,
                                              shape_.channels - channel));
            }
        }
    }

    // A block of depths of `count` filters, line_ apart, as tiles take it.
    void store_block(const Bfloat16* from, int64_t count, __mmask32 depths,
                     Bfloat16* target) const {
        __m512i lines[Vector::width];
        for (int64_t i = 0; i < Vector::width; ++i) {
            lines[i] = _mm512_maskz_loadu_epi16(i < count ? depths : 0, from + i * line_);
        }
        transpose(lines);
        for (int64_t i = 0; i < Vector::width; ++i) {
            _mm512_storeu_si512(target + i * tile_depth, lines[i]);
        }
    }

    // Takes note of what rounding takes from a filter. Returns whether bounds hold for its norm.
    bool bound(int64_t filter, const SquareSums& sums) const {
        // Sums of so many products, in tiles and by vectors, and comparisons.
        const float of_sums = static_cast<float>(layout_.depth + 64) * 0x1p-23f;
        const float norm = norm_margin * __builtin_sqrtf(_mm512_reduce_add_ps(sums.numbers));
        norms_.data()[filter] = norm;
        errors_.data()[filter] =
            norm_margin * __builtin_sqrtf(_mm512_reduce_add_ps(sums.rests)) + of_sums * norm;
        return norm >= least_norm && norm <= most_norm;
    }
    template <class Number>
    bool is_zero(const Number* filter) const {
        for (int64_t tap = 0; tap < taps_; ++tap) {
            for (int64_t channel = 0; channel < shape_.channels; ++channel) {
                const Number& number =
                    filter[channel * weight_.stride_channel + tap * weight_.stride_tap];
                if (widen(number) != 0) return false;
            }
        }
        return true;
    }

    // See product. Of each tap the vectors of channels are added up by turns to two sums, and these
    // one tap after another: tap by tap, or channels by channels.
    struct TapSums {
        __m512 by_turns[2] = {};

        [[gnu::always_inline]] void add(int turn, const float* numbers, __mmask16 there,
                                        __m512 weights) {
            by_turns[turn] =
                _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, numbers), weights, by_turns[turn]);
        }
        [[gnu::always_inline]] __m512 of_tap() const {
            return _mm512_add_ps(by_turns[0], by_turns[1]);
        }
    };
    // Calls function(turn, channel, there) for each vector of channels.
    template <class Function>
    [[gnu::always_inline]] void for_each_vector(Function&& function) const {
        constexpr int64_t width = Vector::width;
        const int64_t whole = shape_.channels / width * width;
        int64_t channel = 0;
        for (; channel + 4 * width <= whole; channel += 4 * width) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) function(i % 2, channel + i * width, 0xFFFF);
        }
        for (; channel + 2 * width <= whole; channel += 2 * width) {
            function(0, channel, 0xFFFF);
            function(1, channel + width, 0xFFFF);
        }
        for (; channel < whole; channel += width) function(0, channel, 0xFFFF);
        if (last_ != 0) function(1, channel, last_);
    }
    float product_with_row(int64_t filter, const float* window, int64_t stride) const {
        const float* row = row_of(filter);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t tap = 0; tap < taps_; ++tap, window += stride, row += stride_tap_) {
            TapSums sums;
            for_each_vector([&](int turn, int64_t channel, __mmask16 there)
                                __attribute__((always_inline)) {
                                    sums.add(turn, window + channel, there,
                                             _mm512_maskz_loadu_ps(there, row + channel));
                                });
            sum = _mm512_add_ps(sum, sums.of_tap());
        }
        return _mm512_reduce_add_ps(sum);
    }
    template <int taps>
    float product_in_order(int64_t filter, const float* window, int64_t stride) const {
        const auto* const numbers =
            static_cast<const float*>(weight_.numbers.data) + filter * weight_.stride_filter;
        TapSums sums[taps];
        for_each_vector(
            [&](int turn, int64_t channel, __mmask16 there) __attribute__((always_inline)) {
                Vector weights[taps];
                load_by_taps(numbers + channel * taps, shape_.channels - channel, weights);
                for (int tap = 0; tap < taps; ++tap) {
                    sums[tap].add(turn, window + tap * stride + channel, there, weights[tap].value);
                }
            });
        __m512 sum = _mm512_setzero_ps();
        for (int tap = 0; tap < taps; ++tap) sum = _mm512_add_ps(sum, sums[tap].of_tap());
        return _mm512_reduce_add_ps(sum);
    }

    const ConvolutionShape& shape_;
    const ConvolutionWeight& weight_;
    const PanelLayout<Vector>& layout_;
    const int64_t taps_;
    const bool are_rows_;       // the filters, in float32, tap after tap
    const bool goes_by_turns_;  // a filter: channel after channel, each with few taps
    const bool keeps_rows_;     // the filters are copied so
    const bool fills_taps_;     // up to whole blocks of depths
    const int64_t line_;        // from a filter to the next while they are rounded
    const int64_t pitch_;
    const __mmask16 last_;         // channels behind those that are whole vectors
    const int64_t stride_filter_;  // of rows
    const int64_t stride_tap_;
    const Scratch<float> numbers_;
    const Scratch<float> norms_;   // ||w||
    const Scratch<float> errors_;  // of a window of norm 1 that rounding takes nothing from
};

}  // namespace seqkernels
