// 512-bit vectors with mask registers. Operations as described in vector_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../core/stored.h"

namespace seqkernels {

template <class T>
struct Avx512Vector;

template <>
struct Avx512Vector<float> {
    using Element = float;
    using Mask = __mmask16;
    using Integer = int32_t;
    static constexpr int width = 16;
    static constexpr int registers = 32;

    __m512 value;

    static Mask first(int64_t count) {
        return count >= width ? Mask(0xFFFF)
                              : static_cast<Mask>((1u << (count < 0 ? 0 : count)) - 1u);
    }
    static Avx512Vector broadcast(float scalar) { return {_mm512_set1_ps(scalar)}; }
    static Avx512Vector load(const float* source) { return {_mm512_loadu_ps(source)}; }
    static Avx512Vector load_first(const float* source, int64_t count) {
        return {_mm512_maskz_loadu_ps(first(count), source)};
    }
    void store(float* target) const { _mm512_storeu_ps(target, value); }
    static constexpr bool can_stream = true;
    void stream(float* target) const { _mm512_stream_ps(target, value); }
    static void end_streaming() { _mm_sfence(); }
    void store_first(float* target, int64_t count) const {
        _mm512_mask_storeu_ps(target, first(count), value);
    }
    template <class Narrow>
    static Avx512Vector load_widened(const Narrow* source) {
        return {widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)), Narrow())};
    }
    template <class Narrow>
    static Avx512Vector load_widened_first(const Narrow* source, int64_t count) {
        return {widened(_mm256_maskz_loadu_epi16(first(count), source), Narrow())};
    }
    template <class Narrow>
    void store_narrowed(Narrow* target) const {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), narrowed(Narrow()));
    }
    template <class Narrow>
    void store_narrowed_first(Narrow* target, int64_t count) const {
        _mm256_mask_storeu_epi16(target, first(count), narrowed(Narrow()));
    }
    template <class Number>
    static void load_transposed(const Number* source, int64_t stride_row,
                                Avx512Vector (&columns)[4]) {
        // Rows i, i + 4, i + 8 and i + 12, their four numbers in a quarter each, so that no step
        // crosses quarters.
        const auto rows = [&](int64_t i) {
            return quarters(source + i * stride_row, 4 * stride_row);
        };
        const __m512 row0 = rows(0), row1 = rows(1), row2 = rows(2), row3 = rows(3);
        const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(row0, row1));
        const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(row2, row3));
        const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(row0, row1));
        const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(row2, row3));
        columns[0].value = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
        columns[1].value = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
        columns[2].value = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
        columns[3].value = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
    }
    // The same of whole cache lines.
    [[gnu::always_inline]] static void load_transposed(const float* source, int64_t stride_row,
                                                       Avx512Vector (&columns)[16]) {
        // quads[i + j], i a multiple of 4: of columns j, 4 + j, 8 + j and 12 + j the numbers of
        // rows i to i + 3.
        __m512 quads[16];
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4) {
            const auto row = [&](int j) { return _mm512_loadu_ps(source + (i + j) * stride_row); };
            const __m512 row0 = row(0), row1 = row(1), row2 = row(2), row3 = row(3);
            const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(row0, row1));
            const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(row2, row3));
            const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(row0, row1));
            const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(row2, row3));
            quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
            quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
            quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
            quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
        }
        constexpr int even = 0b10001000, odd = 0b11011101;
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const __m512 upper_even = _mm512_shuffle_f32x4(quads[j], quads[4 + j], even);
            const __m512 lower_even = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], even);
            const __m512 upper_odd = _mm512_shuffle_f32x4(quads[j], quads[4 + j], odd);
            const __m512 lower_odd = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], odd);
            columns[j].value = _mm512_shuffle_f32x4(upper_even, lower_even, even);
            columns[4 + j].value = _mm512_shuffle_f32x4(upper_odd, lower_odd, even);
            columns[8 + j].value = _mm512_shuffle_f32x4(upper_even, lower_even, odd);
            columns[12 + j].value = _mm512_shuffle_f32x4(upper_odd, lower_odd, odd);
        }
    }
    static void load_transposed(const Bfloat16* source, int64_t stride_row,
                                Avx512Vector (&columns)[8]) {
        Avx512Vector pairs[4];
        load_transposed<Bfloat16>(source, stride_row, pairs);
        for (int i = 0; i < 4; ++i) {
            const __m512i pair = _mm512_castps_si512(pairs[i].value);
            columns[2 * i].value = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
            columns[2 * i + 1].value = _mm512_castsi512_ps(
                _mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
        }
    }
    static constexpr bool can_interleave = true;
    template <int count>
    [[gnu::always_inline]] static void deinterleave(Avx512Vector (&vectors)[count]) {
        static constexpr Permutations<count> permutations(
            [](int lane, int vector) { return lane * count + vector; });
        permutations.apply(vectors);
    }
    template <int count>
    [[gnu::always_inline]] static void interleave(Avx512Vector (&vectors)[count]) {
        static constexpr Permutations<count> permutations([](int lane, int vector) {
            const int number = vector * width + lane;
            return number % count * width + number / count;
        });
        permutations.apply(vectors);
    }
    static Avx512Vector sums_of_fours(Avx512Vector a, Avx512Vector b, Avx512Vector c,
                                      Avx512Vector d) {
        const auto pairs = [](__m512 even, __m512 odd) {
            return _mm512_castps_pd(
                _mm512_add_ps(_mm512_unpacklo_ps(even, odd), _mm512_unpackhi_ps(even, odd)));
        };
        const __m512d ab = pairs(a.value, b.value), cd = pairs(c.value, d.value);
        return {_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                              _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)))};
    }
    static Avx512Vector sum_of_fours(const Avx512Vector* fours) {
        const auto halves = [](__m512 a, __m512 b) {
            return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44),
                                 _mm512_shuffle_f32x4(a, b, 0xEE));
        };
        const __m512 low = halves(fours[0].value, fours[1].value);
        const __m512 high = halves(fours[2].value, fours[3].value);
        return {_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                              _mm512_shuffle_f32x4(low, high, 0xDD))};
    }
    void stay_in_register() { asm("" : "+v"(value)); }
    static Avx512Vector from_integer(int64_t integer) {
        return {_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(integer)))};
    }
    void store_integers(int32_t* target, int64_t count) const {
        _mm512_mask_storeu_epi32(target, first(count), _mm512_castps_si512(value));
    }
    static Mask are_integer(const int32_t* integers, int64_t count, int32_t integer) {
        const __m512i numbers = _mm512_maskz_loadu_epi32(first(count), integers);
        return _mm512_mask_cmpeq_epi32_mask(first(count), numbers, _mm512_set1_epi32(integer));
    }

    friend Avx512Vector operator+(Avx512Vector a, Avx512Vector b) {
        return {_mm512_add_ps(a.value, b.value)};
    }
    friend Avx512Vector operator-(Avx512Vector a, Avx512Vector b) {
        return {_mm512_sub_ps(a.value, b.value)};
    }
    friend Avx512Vector operator*(Avx512Vector a, Avx512Vector b) {
        return {_mm512_mul_ps(a.value, b.value)};
    }
    friend Avx512Vector operator/(Avx512Vector a, Avx512Vector b) {
        return {_mm512_div_ps(a.value, b.value)};
    }
    friend Avx512Vector multiply_add(Avx512Vector a, Avx512Vector b, Avx512Vector c) {
        return {_mm512_fmadd_ps(a.value, b.value, c.value)};
    }
    friend Avx512Vector maximum(Avx512Vector a, Avx512Vector b) {
        return {_mm512_max_ps(a.value, b.value)};
    }
    friend Avx512Vector minimum(Avx512Vector a, Avx512Vector b) {
        return {_mm512_min_ps(a.value, b.value)};
    }
    friend Mask at_most(Avx512Vector a, Avx512Vector b) {
        return _mm512_cmp_ps_mask(a.value, b.value, _CMP_LE_OQ);
    }
    friend Mask exceeds(Avx512Vector a, Avx512Vector b) {
        return _mm512_cmp_ps_mask(a.value, b.value, _CMP_GT_OQ);
    }
    friend bool has_nan(Avx512Vector a) {
        return _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q) != 0;
    }
    friend Avx512Vector select(Mask mask, Avx512Vector yes, Avx512Vector no) {
        return {_mm512_mask_blend_ps(mask, no.value, yes.value)};
    }
    friend Avx512Vector absolute(Avx512Vector a) { return {_mm512_abs_ps(a.value)}; }
    friend Avx512Vector larger_magnitude(Avx512Vector a, Avx512Vector b) {
        return {_mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(absolute(a).value),
                                                     _mm512_castps_si512(absolute(b).value)))};
    }
    friend Avx512Vector copy_sign(Avx512Vector magnitude, Avx512Vector sign) {
        const __m512 bit = _mm512_set1_ps(-0.0f);
        return {
            _mm512_or_ps(_mm512_andnot_ps(bit, magnitude.value), _mm512_and_ps(bit, sign.value))};
    }
    friend Avx512Vector round_to_integer(Avx512Vector a) {
        return {_mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    friend Avx512Vector power_of_two(Avx512Vector a) {
        const __m512i exponent =
            _mm512_add_epi32(_mm512_cvtps_epi32(a.value), _mm512_set1_epi32(127));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
    }

 private:
    // Where each number of some vectors comes from: source(lane, vector) of width * count numbers.
    template <int count>
    class Permutations {
     public:
        template <class Source>
        explicit constexpr Permutations(Source&& source) {
            for (int v = 0; v < count; ++v) {
                for (int lane = 0; lane < width; ++lane) {
                    const int number = source(lane, v);
                    places_[v][lane] = number % (2 * width);
                    masks_[v][number / (2 * width)] |= static_cast<Mask>(1 << lane);
                }
            }
        }
        // Two vectors are chosen from at once, and the last, if it is left, alone.
        [[gnu::always_inline]] void apply(Avx512Vector (&vectors)[count]) const {
            __m512 result[count];
#pragma GCC unroll 8
            for (int v = 0; v < count; ++v) {
                const __m512i places = _mm512_load_si512(places_[v]);
                result[v] = _mm512_permutexvar_ps(places, vectors[0].value);
#pragma GCC unroll 4
                for (int i = 0; i < count; i += 2) {
                    if (i + 1 < count) {
                        const __m512 chosen =
                            _mm512_permutex2var_ps(vectors[i].value, places, vectors[i + 1].value);
                        result[v] = i == 0
                                        ? chosen
                                        : _mm512_mask_blend_ps(masks_[v][i / 2], result[v], chosen);
                    } else if (i > 0) {
                        result[v] = _mm512_mask_permutexvar_ps(result[v], masks_[v][i / 2], places,
                                                               vectors[i].value);
                    }
                }
            }
#pragma GCC unroll 8
            for (int v = 0; v < count; ++v) vectors[v].value = result[v];
        }

     private:
        alignas(64) int32_t places_[count][width] = {};
        Mask masks_[count][(count + 1) / 2] = {};
    };

    // Sixteen numbers of a 16-bit type.
    static __m512 widened(__m256i bits, Bfloat16) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static __m512 widened(__m256i bits, Float16) { return _mm512_cvtph_ps(bits); }
    __m256i narrowed(Bfloat16) const {
        const __m512i bits = _mm512_castps_si512(value);
        const Mask is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
        const __m512i rounded =
            _mm512_mask_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), is_odd, bits,
                                  _mm512_set1_epi32(0x8000));
        const Mask is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        const __m512i kept =
            _mm512_mask_blend_epi32(is_nan, rounded, _mm512_set1_epi32(0x7FC00000));
        return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
    }
    __m256i narrowed(Float16) const {
        return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    // Four numbers from each of four places; of bfloat16 four pairs as they are.
    template <class Number>
    static __m512 quarters(const Number* source, int64_t stride) {
        const auto load = [&](int64_t i) {
            return _mm_loadu_ps(reinterpret_cast<const float*>(source + i * stride));
        };
        __m512 four = _mm512_castps128_ps512(load(0));
        four = _mm512_insertf32x4(four, load(1), 1);
        four = _mm512_insertf32x4(four, load(2), 2);
        return _mm512_insertf32x4(four, load(3), 3);
    }
    static __m512 quarters(const Float16* source, int64_t stride) {
        const auto two = [&](const Float16* low) {
            return _mm_unpacklo_epi64(
                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(low)),
                _mm_loadl_epi64(reinterpret_cast<const __m128i*>(low + stride)));
        };
        return widened(_mm256_set_m128i(two(source + 2 * stride), two(source)), Float16());
    }
};

template <>
struct Avx512Vector<double> {
    using Element = double;
    using Mask = __mmask8;
    using Integer = int64_t;
    static constexpr int width = 8;
    static constexpr int registers = 32;

    __m512d value;

    static Mask first(int64_t count) {
        return count >= width ? Mask(0xFF)
                              : static_cast<Mask>((1u << (count < 0 ? 0 : count)) - 1u);
    }
    static Avx512Vector broadcast(double scalar) { return {_mm512_set1_pd(scalar)}; }
    static Avx512Vector load(const double* source) { return {_mm512_loadu_pd(source)}; }
    static Avx512Vector load_first(const double* source, int64_t count) {
        return {_mm512_maskz_loadu_pd(first(count), source)};
    }
    void store(double* target) const { _mm512_storeu_pd(target, value); }
    static constexpr bool can_stream = true;
    static constexpr bool can_interleave = false;
    void stream(double* target) const { _mm512_stream_pd(target, value); }
    static void end_streaming() { _mm_sfence(); }
    void store_first(double* target, int64_t count) const {
        _mm512_mask_storeu_pd(target, first(count), value);
    }
    static void load_transposed(const double* source, int64_t stride_row,
                                Avx512Vector (&columns)[4]) {
        // Rows i and i + 4, their four numbers in a half each.
        const auto rows = [&](int64_t i) {
            return _mm512_insertf64x4(
                _mm512_castpd256_pd512(_mm256_loadu_pd(source + i * stride_row)),
                _mm256_loadu_pd(source + (i + 4) * stride_row), 1);
        };
        const __m512d row0 = rows(0), row1 = rows(1), row2 = rows(2), row3 = rows(3);
        const __m512d even01 = _mm512_unpacklo_pd(row0, row1),
                      odd01 = _mm512_unpackhi_pd(row0, row1);
        const __m512d even23 = _mm512_unpacklo_pd(row2, row3),
                      odd23 = _mm512_unpackhi_pd(row2, row3);
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        const __m512i second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        columns[0].value = _mm512_permutex2var_pd(even01, first, even23);
        columns[1].value = _mm512_permutex2var_pd(odd01, first, odd23);
        columns[2].value = _mm512_permutex2var_pd(even01, second, even23);
        columns[3].value = _mm512_permutex2var_pd(odd01, second, odd23);
    }
    static Avx512Vector sums_of_fours(Avx512Vector a, Avx512Vector b, Avx512Vector c,
                                      Avx512Vector d) {
        const auto pairs = [](__m512d even, __m512d odd) {
            return _mm512_add_pd(_mm512_unpacklo_pd(even, odd), _mm512_unpackhi_pd(even, odd));
        };
        const __m512d ab = pairs(a.value, b.value), cd = pairs(c.value, d.value);
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
        const __m512i second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
        return {_mm512_add_pd(_mm512_permutex2var_pd(ab, first, cd),
                              _mm512_permutex2var_pd(ab, second, cd))};
    }
    static Avx512Vector sum_of_fours(const Avx512Vector* fours) {
        const __m512d low = _mm512_shuffle_f64x2(fours[0].value, fours[1].value, 0x44);
        const __m512d high = _mm512_shuffle_f64x2(fours[0].value, fours[1].value, 0xEE);
        return {_mm512_add_pd(low, high)};
    }
    void stay_in_register() { asm("" : "+v"(value)); }
    static Avx512Vector from_integer(int64_t integer) {
        return {_mm512_castsi512_pd(_mm512_set1_epi64(integer))};
    }
    void store_integers(int32_t* target, int64_t count) const {
        _mm512_mask_cvtepi64_storeu_epi32(target, first(count), _mm512_castpd_si512(value));
    }

    friend Avx512Vector operator+(Avx512Vector a, Avx512Vector b) {
        return {_mm512_add_pd(a.value, b.value)};
    }
    friend Avx512Vector operator-(Avx512Vector a, Avx512Vector b) {
        return {_mm512_sub_pd(a.value, b.value)};
    }
    friend Avx512Vector operator*(Avx512Vector a, Avx512Vector b) {
        return {_mm512_mul_pd(a.value, b.value)};
    }
    friend Avx512Vector operator/(Avx512Vector a, Avx512Vector b) {
        return {_mm512_div_pd(a.value, b.value)};
    }
    friend Avx512Vector multiply_add(Avx512Vector a, Avx512Vector b, Avx512Vector c) {
        return {_mm512_fmadd_pd(a.value, b.value, c.value)};
    }
    friend Avx512Vector maximum(Avx512Vector a, Avx512Vector b) {
        return {_mm512_max_pd(a.value, b.value)};
    }
    friend Avx512Vector minimum(Avx512Vector a, Avx512Vector b) {
        return {_mm512_min_pd(a.value, b.value)};
    }
    friend Mask at_most(Avx512Vector a, Avx512Vector b) {
        return _mm512_cmp_pd_mask(a.value, b.value, _CMP_LE_OQ);
    }
    friend Mask exceeds(Avx512Vector a, Avx512Vector b) {
        return _mm512_cmp_pd_mask(a.value, b.value, _CMP_GT_OQ);
    }
    friend bool has_nan(Avx512Vector a) {
        return _mm512_cmp_pd_mask(a.value, a.value, _CMP_UNORD_Q) != 0;
    }
    friend Avx512Vector select(Mask mask, Avx512Vector yes, Avx512Vector no) {
        return {_mm512_mask_blend_pd(mask, no.value, yes.value)};
    }
    friend Avx512Vector absolute(Avx512Vector a) { return {_mm512_abs_pd(a.value)}; }
    friend Avx512Vector copy_sign(Avx512Vector magnitude, Avx512Vector sign) {
        const __m512d bit = _mm512_set1_pd(-0.0);
        return {
            _mm512_or_pd(_mm512_andnot_pd(bit, magnitude.value), _mm512_and_pd(bit, sign.value))};
    }
    friend Avx512Vector round_to_integer(Avx512Vector a) {
        return {_mm512_roundscale_pd(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    friend Avx512Vector power_of_two(Avx512Vector a) {
        const __m512i exponent =
            _mm512_add_epi64(_mm512_cvtpd_epi64(a.value), _mm512_set1_epi64(1023));
        return {_mm512_castsi512_pd(_mm512_slli_epi64(exponent, 52))};
    }
};

}  // namespace seqkernels
