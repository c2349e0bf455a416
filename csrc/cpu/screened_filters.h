// The filters of a convolution whose products are screened (screened_windows.h): as rows of
// float32, and what bounds the error of their products in one plane of bfloat16.
//
// Scratch, owned by the call: the filters once more in float32, and two numbers for each.
#pragma once

#include <cstdint>

#include "../core/scratch.h"
#include "product.h"
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
    ScreenedFilters(const ConvolutionShape& shape, const WindowDepths& depths,
                    const PanelLayout<Vector>& layout)
        : shape_(shape),
          depths_(depths),
          layout_(layout),
          pitch_(divide_rounding_up(shape.kernel_size * shape.channels, Vector::width) *
                 Vector::width),
          numbers_(checked_product({layout.vectors(), Vector::width, pitch_})),
          norms_(layout.vectors() * Vector::width),
          errors_(layout.vectors() * Vector::width) {}

    // Takes a panel as float32, columns[(depth * vectors + vector) * width + lane]. Returns whether
    // the bounds hold for all of its filters.
    bool take(int64_t panel, const float* columns) const {
        const int64_t vectors = layout_.units_of(panel);
        bool are_plain = true;
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t filter = layout_.first_column(panel) + v * Vector::width;
            const Norms norms =
                store_rows(columns + v * Vector::width, vectors * Vector::width, filter);
            if (!store_norms(norms, filter)) are_plain = false;
        }
        return are_plain;
    }

    // One filter: of tap after tap its channels, and zeros up to a whole vector.
    const float* row(int64_t filter) const { return numbers_.data() + filter * pitch_; }

    // Of a vector of filters, what the norm of a window is multiplied with to bound the error of
    // its product, if rounding takes no more than `lost` times its norm from it.
    __m512 bounds(int64_t filter, float lost) const {
        return _mm512_fmadd_ps(_mm512_set1_ps(lost), _mm512_loadu_ps(norms_.data() + filter),
                               _mm512_loadu_ps(errors_.data() + filter));
    }

 private:
    // Of a vector of filters.
    struct Norms {
        SquareSums sums;
        __mmask16 are_zeros;
    };

    // The rows of a vector of filters, of which lines `line` numbers apart hold a depth each.
    Norms store_rows(const float* columns, int64_t line, int64_t filter) const {
        SquareSums even, odd;
        __m512i any_bits = _mm512_setzero_si512();
        int64_t tap = 0, channel = 0;
        for (int64_t number = 0; number < pitch_; number += Vector::width) {
            __m512i block[Vector::width];
            const float* const first = columns + depths_.place(tap, channel) * line;
            if (channel + Vector::width <= shape_.channels) {
#pragma GCC unroll 16
                for (int i = 0; i < Vector::width; ++i) {
                    block[i] = _mm512_loadu_si512(first + i * line);
                }
                channel += Vector::width;
            } else {
                for (int i = 0; i < Vector::width; ++i) {
                    if (channel == shape_.channels) channel = 0, ++tap;
                    block[i] =
                        tap == shape_.kernel_size
                            ? _mm512_setzero_si512()
                            : _mm512_loadu_si512(columns + depths_.place(tap, channel++) * line);
                }
            }
#pragma GCC unroll 16
            for (int i = 0; i < Vector::width; i += 2) {
                even.take(_mm512_castsi512_ps(block[i]));
                odd.take(_mm512_castsi512_ps(block[i + 1]));
                any_bits = _mm512_or_si512(any_bits, _mm512_or_si512(block[i], block[i + 1]));
            }
            transpose(block);
            for (int i = 0; i < Vector::width; ++i) {
                _mm512_storeu_si512(numbers_.data() + (filter + i) * pitch_ + number, block[i]);
            }
        }
        return {{_mm512_add_ps(even.numbers, odd.numbers), _mm512_add_ps(even.rests, odd.rests)},
                _mm512_testn_epi32_mask(any_bits, _mm512_set1_epi32(0x7FFFFFFF))};
    }

    bool store_norms(const Norms& norms, int64_t filter) const {
        float squares[Vector::width], rests[Vector::width];
        _mm512_storeu_ps(squares, norms.sums.numbers);
        _mm512_storeu_ps(rests, norms.sums.rests);
        // Sums of so many products, in tiles and by vectors, and comparisons.
        const float of_sums = static_cast<float>(layout_.depth + 64) * 0x1p-23f;
        bool are_plain = true;
        for (int lane = 0; lane < Vector::width; ++lane) {
            const float norm = norm_margin * __builtin_sqrtf(squares[lane]);
            const bool is_zero = (norms.are_zeros >> lane & 1) != 0;
            if (!is_zero && !(norm >= least_norm && norm <= most_norm)) are_plain = false;
            norms_.data()[filter + lane] = norm;
            errors_.data()[filter + lane] =
                norm_margin * __builtin_sqrtf(rests[lane]) + of_sums * norm;
        }
        return are_plain;
    }

    const ConvolutionShape& shape_;
    const WindowDepths& depths_;
    const PanelLayout<Vector>& layout_;
    const int64_t pitch_;
    const Scratch<float> numbers_;
    const Scratch<float> norms_;   // ||w||
    const Scratch<float> errors_;  // of a window of norm 1 that rounding takes nothing from
};

}  // namespace seqkernels
