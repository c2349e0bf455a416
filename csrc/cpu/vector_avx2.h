// 256-bit vectors with fused multiply-add. Operations as described in vector_scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../core/stored.h"

namespace seqkernels {

template <class T>
struct Avx2Vector;

template <>
struct Avx2Vector<float> {
    using Element = float;
    using Mask = __m256;
    using Integer = int32_t;
    static constexpr int width = 8;
    static constexpr int registers = 16;

    __m256 value;

    static __m256i first(int64_t count) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(
            _mm256_set1_epi32(static_cast<int>(count < width ? count : width)), lanes);
    }
    static Avx2Vector broadcast(float scalar) { return {_mm256_set1_ps(scalar)}; }
    static Avx2Vector load(const float* source) { return {_mm256_loadu_ps(source)}; }
    static Avx2Vector load_first(const float* source, int64_t count) {
        return {_mm256_maskload_ps(source, first(count))};
    }
    void store(float* target) const { _mm256_storeu_ps(target, value); }
    static constexpr bool can_stream = false;
    static constexpr bool can_interleave = false;
    void stream(float* target) const { store(target); }
    static void end_streaming() {}
    void store_first(float* target, int64_t count) const {
        _mm256_maskstore_ps(target, first(count), value);
    }
    template <class Narrow>
    static Avx2Vector load_widened(const Narrow* source) {
        return {widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)), Narrow())};
    }
    template <class Narrow>
    static Avx2Vector load_widened_first(const Narrow* source, int64_t count) {
        Narrow numbers[width] = {};
        for (int64_t i = 0; i < count; ++i) numbers[i] = source[i];
        return load_widened(numbers);
    }
    template <class Narrow>
    void store_narrowed_first(Narrow* target, int64_t count) const {
        Narrow numbers[width];
        store_narrowed(numbers);
        for (int64_t i = 0; i < count; ++i) target[i] = numbers[i];
    }
    void store_narrowed(Bfloat16* target) const {
        const __m256i bits = _mm256_castps_si256(value);
        const __m256i last_kept =
            _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_srli_epi32(
            _mm256_add_epi32(_mm256_add_epi32(bits, last_kept), _mm256_set1_epi32(0x7FFF)), 16);
        const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
        const __m256i kept = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), is_nan);
        store_bits(target, _mm_packus_epi32(_mm256_castsi256_si128(kept),
                                            _mm256_extracti128_si256(kept, 1)));
    }
    void store_narrowed(Float16* target) const {
        store_bits(target, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    template <class Number>
    static void load_transposed(const Number* source, int64_t stride_row,
                                Avx2Vector (&columns)[4]) {
        // Rows i and i + 4, their four numbers in a half each, so that no step crosses halves.
        const auto rows = [&](int64_t i) {
            return _mm256_castps_pd(halves(source + i * stride_row, source + (i + 4) * stride_row));
        };
        const auto low = [](__m256d a, __m256d b) {
            return _mm256_castps_pd(_mm256_unpacklo_ps(_mm256_castpd_ps(a), _mm256_castpd_ps(b)));
        };
        const auto high = [](__m256d a, __m256d b) {
            return _mm256_castps_pd(_mm256_unpackhi_ps(_mm256_castpd_ps(a), _mm256_castpd_ps(b)));
        };
        const __m256d row0 = rows(0), row1 = rows(1), row2 = rows(2), row3 = rows(3);
        const __m256d low01 = low(row0, row1), low23 = low(row2, row3);
        const __m256d high01 = high(row0, row1), high23 = high(row2, row3);
        columns[0].value = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
        columns[1].value = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
        columns[2].value = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
        columns[3].value = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
    }
    static void load_transposed(const Bfloat16* source, int64_t stride_row,
                                Avx2Vector (&columns)[8]) {
        Avx2Vector pairs[4];
        load_transposed<Bfloat16>(source, stride_row, pairs);
        for (int i = 0; i < 4; ++i) {
            const __m256i pair = _mm256_castps_si256(pairs[i].value);
            columns[2 * i].value = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
            columns[2 * i + 1].value = _mm256_castsi256_ps(
                _mm256_and_si256(pair, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
        }
    }
    static Avx2Vector sums_of_fours(Avx2Vector a, Avx2Vector b, Avx2Vector c, Avx2Vector d) {
        return {_mm256_hadd_ps(_mm256_hadd_ps(a.value, b.value), _mm256_hadd_ps(c.value, d.value))};
    }
    static Avx2Vector sum_of_fours(const Avx2Vector* fours) {
        const __m256 low = _mm256_permute2f128_ps(fours[0].value, fours[1].value, 0x20);
        const __m256 high = _mm256_permute2f128_ps(fours[0].value, fours[1].value, 0x31);
        return {_mm256_add_ps(low, high)};
    }
    void stay_in_register() { asm("" : "+x"(value)); }
    static Avx2Vector from_integer(int64_t integer) {
        return {_mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(integer)))};
    }
    void store_integers(int32_t* target, int64_t count) const {
        _mm256_maskstore_epi32(target, first(count), _mm256_castps_si256(value));
    }
    static Mask are_integer(const int32_t* integers, int64_t count, int32_t integer) {
        const __m256i there = first(count);
        const __m256i equal =
            _mm256_cmpeq_epi32(_mm256_maskload_epi32(integers, there), _mm256_set1_epi32(integer));
        return _mm256_castsi256_ps(_mm256_and_si256(equal, there));
    }

    friend Avx2Vector operator+(Avx2Vector a, Avx2Vector b) {
        return {_mm256_add_ps(a.value, b.value)};
    }
    friend Avx2Vector operator-(Avx2Vector a, Avx2Vector b) {
        return {_mm256_sub_ps(a.value, b.value)};
    }
    friend Avx2Vector operator*(Avx2Vector a, Avx2Vector b) {
        return {_mm256_mul_ps(a.value, b.value)};
    }
    friend Avx2Vector operator/(Avx2Vector a, Avx2Vector b) {
        return {_mm256_div_ps(a.value, b.value)};
    }
    friend Avx2Vector multiply_add(Avx2Vector a, Avx2Vector b, Avx2Vector c) {
        return {_mm256_fmadd_ps(a.value, b.value, c.value)};
    }
    friend Avx2Vector maximum(Avx2Vector a, Avx2Vector b) {
        return {_mm256_max_ps(a.value, b.value)};
    }
    friend Avx2Vector minimum(Avx2Vector a, Avx2Vector b) {
        return {_mm256_min_ps(a.value, b.value)};
    }
    friend Mask at_most(Avx2Vector a, Avx2Vector b) {
        return _mm256_cmp_ps(a.value, b.value, _CMP_LE_OQ);
    }
    friend Mask exceeds(Avx2Vector a, Avx2Vector b) {
        return _mm256_cmp_ps(a.value, b.value, _CMP_GT_OQ);
    }
    friend bool has_nan(Avx2Vector a) {
        return _mm256_movemask_ps(_mm256_cmp_ps(a.value, a.value, _CMP_UNORD_Q)) != 0;
    }
    friend Avx2Vector select(Mask mask, Avx2Vector yes, Avx2Vector no) {
        return {_mm256_blendv_ps(no.value, yes.value, mask)};
    }
    friend Avx2Vector absolute(Avx2Vector a) {
        return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.value)};
    }
    friend Avx2Vector larger_magnitude(Avx2Vector a, Avx2Vector b) {
        return {_mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(absolute(a).value),
                                                     _mm256_castps_si256(absolute(b).value)))};
    }
    friend Avx2Vector copy_sign(Avx2Vector magnitude, Avx2Vector sign) {
        const __m256 bit = _mm256_set1_ps(-0.0f);
        return {
            _mm256_or_ps(_mm256_andnot_ps(bit, magnitude.value), _mm256_and_ps(bit, sign.value))};
    }
    friend Avx2Vector round_to_integer(Avx2Vector a) {
        return {_mm256_round_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    friend Avx2Vector power_of_two(Avx2Vector a) {
        const __m256i exponent =
            _mm256_add_epi32(_mm256_cvtps_epi32(a.value), _mm256_set1_epi32(127));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
    }

 private:
    // Eight numbers of a 16-bit type.
    static __m256 widened(__m128i bits, Bfloat16) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static __m256 widened(__m128i bits, Float16) { return _mm256_cvtph_ps(bits); }
    static void store_bits(void* target, __m128i bits) {
        _mm_storeu_si128(static_cast<__m128i*>(target), bits);
    }
    // Four numbers from either place; of bfloat16 four pairs as they are.
    template <class Number>
    static __m256 halves(const Number* low, const Number* high) {
        const __m128 low_bits = _mm_loadu_ps(reinterpret_cast<const float*>(low));
        const __m128 high_bits = _mm_loadu_ps(reinterpret_cast<const float*>(high));
        return _mm256_insertf128_ps(_mm256_castps128_ps256(low_bits), high_bits, 1);
    }
    static __m256 halves(const Float16* low, const Float16* high) {
        const __m128i low_bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(low));
        const __m128i high_bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(high));
        return widened(_mm_unpacklo_epi64(low_bits, high_bits), Float16());
    }
};

template <>
struct Avx2Vector<double> {
    using Element = double;
    using Mask = __m256d;
    using Integer = int64_t;
    static constexpr int width = 4;
    static constexpr int registers = 16;

    __m256d value;

    static __m256i first(int64_t count) {
        const __m256i lanes = _mm256_setr_epi64x(0, 1, 2, 3);
        return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lanes);
    }
    static Avx2Vector broadcast(double scalar) { return {_mm256_set1_pd(scalar)}; }
    static Avx2Vector load(const double* source) { return {_mm256_loadu_pd(source)}; }
    static Avx2Vector load_first(const double* source, int64_t count) {
        return {_mm256_maskload_pd(source, first(count))};
    }
    void store(double* target) const { _mm256_storeu_pd(target, value); }
    static constexpr bool can_stream = false;
    static constexpr bool can_interleave = false;
    void stream(double* target) const { store(target); }
    static void end_streaming() {}
    void store_first(double* target, int64_t count) const {
        _mm256_maskstore_pd(target, first(count), value);
    }
    static void load_transposed(const double* source, int64_t stride_row,
                                Avx2Vector (&columns)[4]) {
        const __m256d row0 = _mm256_loadu_pd(source), row1 = _mm256_loadu_pd(source + stride_row);
        const __m256d row2 = _mm256_loadu_pd(source + 2 * stride_row);
        const __m256d row3 = _mm256_loadu_pd(source + 3 * stride_row);
        const __m256d even01 = _mm256_unpacklo_pd(row0, row1),
                      odd01 = _mm256_unpackhi_pd(row0, row1);
        const __m256d even23 = _mm256_unpacklo_pd(row2, row3),
                      odd23 = _mm256_unpackhi_pd(row2, row3);
        columns[0].value = _mm256_permute2f128_pd(even01, even23, 0x20);
        columns[1].value = _mm256_permute2f128_pd(odd01, odd23, 0x20);
        columns[2].value = _mm256_permute2f128_pd(even01, even23, 0x31);
        columns[3].value = _mm256_permute2f128_pd(odd01, odd23, 0x31);
    }
    static Avx2Vector sums_of_fours(Avx2Vector a, Avx2Vector b, Avx2Vector c, Avx2Vector d) {
        const __m256d ab = _mm256_hadd_pd(a.value, b.value), cd = _mm256_hadd_pd(c.value, d.value);
        return {_mm256_add_pd(_mm256_permute2f128_pd(ab, cd, 0x20),
                              _mm256_permute2f128_pd(ab, cd, 0x31))};
    }
    static Avx2Vector sum_of_fours(const Avx2Vector* fours) { return fours[0]; }
    void stay_in_register() { asm("" : "+x"(value)); }
    static Avx2Vector from_integer(int64_t integer) {
        return {_mm256_castsi256_pd(_mm256_set1_epi64x(integer))};
    }
    void store_integers(int32_t* target, int64_t count) const {
        alignas(32) int64_t integers[width];
        _mm256_store_si256(reinterpret_cast<__m256i*>(integers), _mm256_castpd_si256(value));
        for (int64_t lane = 0; lane < count && lane < width; ++lane) {
            target[lane] = static_cast<int32_t>(integers[lane]);
        }
    }

    friend Avx2Vector operator+(Avx2Vector a, Avx2Vector b) {
        return {_mm256_add_pd(a.value, b.value)};
    }
    friend Avx2Vector operator-(Avx2Vector a, Avx2Vector b) {
        return {_mm256_sub_pd(a.value, b.value)};
    }
    friend Avx2Vector operator*(Avx2Vector a, Avx2Vector b) {
        return {_mm256_mul_pd(a.value, b.value)};
    }
    friend Avx2Vector operator/(Avx2Vector a, Avx2Vector b) {
        return {_mm256_div_pd(a.value, b.value)};
    }
    friend Avx2Vector multiply_add(Avx2Vector a, Avx2Vector b, Avx2Vector c) {
        return {_mm256_fmadd_pd(a.value, b.value, c.value)};
    }
    friend Avx2Vector maximum(Avx2Vector a, Avx2Vector b) {
        return {_mm256_max_pd(a.value, b.value)};
    }
    friend Avx2Vector minimum(Avx2Vector a, Avx2Vector b) {
        return {_mm256_min_pd(a.value, b.value)};
    }
    friend Mask at_most(Avx2Vector a, Avx2Vector b) {
        return _mm256_cmp_pd(a.value, b.value, _CMP_LE_OQ);
    }
    friend Mask exceeds(Avx2Vector a, Avx2Vector b) {
        return _mm256_cmp_pd(a.value, b.value, _CMP_GT_OQ);
    }
    friend bool has_nan(Avx2Vector a) {
        return _mm256_movemask_pd(_mm256_cmp_pd(a.value, a.value, _CMP_UNORD_Q)) != 0;
    }
    friend Avx2Vector select(Mask mask, Avx2Vector yes, Avx2Vector no) {
        return {_mm256_blendv_pd(no.value, yes.value, mask)};
    }
    friend Avx2Vector absolute(Avx2Vector a) {
        return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.value)};
    }
    friend Avx2Vector copy_sign(Avx2Vector magnitude, Avx2Vector sign) {
        const __m256d bit = _mm256_set1_pd(-0.0);
        return {
            _mm256_or_pd(_mm256_andnot_pd(bit, magnitude.value), _mm256_and_pd(bit, sign.value))};
    }
    friend Avx2Vector round_to_integer(Avx2Vector a) {
        return {_mm256_round_pd(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
    }
    friend Avx2Vector power_of_two(Avx2Vector a) {
        const __m256i exponent = _mm256_add_epi64(
            _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(a.value)), _mm256_set1_epi64x(1023));
        return {_mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52))};
    }
};

}  // namespace seqkernels
