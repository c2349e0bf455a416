// Numbers as tiles multiply them: vectors cut into bfloat16 planes, and 16 x 16 transpositions.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../core/range.h"
#include "../core/stored.h"
#include "tile_instructions.h"
#include "vector_avx512.h"

namespace seqkernels {

// Of what a product reads, that which L1 need not keep.
enum class ReadOnce { neither, rows, columns };

// The first `count` of 32 depths.
inline __mmask32 first_depths(int64_t count) {
    return count >= 32 ? ~__mmask32{0}
                       : static_cast<__mmask32>((uint32_t{1} << larger(0, count)) - 1);
}

// Those of 16 numbers that side by side that the mask names, the others zero and not touched.
inline __m512 load_masked(const float* source, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, source);
}
inline __m512 load_masked(const Bfloat16* source, __mmask16 mask) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source)), 16));
}
inline __m512 load_masked(const Float16* source, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, source));
}

inline __m512 widened_bfloat16(__m256i numbers) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

// 16 numbers as the sum of planes, each the rest rounded.
template <int planes>
inline void cut_into_planes(__m512 numbers, __m256i (&cut)[planes]) {
    for (int p = 0; p < planes; ++p) {
        cut[p] = rounded_to_bfloat16(numbers);
        if (p + 1 < planes) numbers = _mm512_sub_ps(numbers, widened_bfloat16(cut[p]));
    }
}

// 16 numbers and 16 others as pairs: those of lane l beside each other.
inline __m512i rounded_to_pairs(__m512 first, __m512 second) {
    const __m512i in_turns =
        _mm512_set_epi32(0x001F000F, 0x001E000E, 0x001D000D, 0x001C000C, 0x001B000B, 0x001A000A,
                         0x00190009, 0x00180008, 0x00170007, 0x00160006, 0x00150005, 0x00140004,
                         0x00130003, 0x00120002, 0x00110001, 0x00100000);
    return _mm512_permutexvar_epi16(in_turns, rounded_to_bfloat16(first, second));
}

// The same of pairs: in lane l that of first[l] and second[l].
template <int planes>
inline void cut_into_pairs(__m512 first, __m512 second, __m512i (&cut)[planes]) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
    for (int p = 0; p < planes; ++p) {
        cut[p] = rounded_to_pairs(first, second);
        if (p + 1 == planes) break;
        first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_slli_epi32(cut[p], 16)));
        second = _mm512_sub_ps(second, _mm512_castsi512_ps(_mm512_and_si512(cut[p], upper)));
    }
}

// The same of 32 numbers that follow each other.
template <int planes>
inline void cut_into_lines(__m512 low, __m512 high, __m512i (&cut)[planes]) {
    for (int p = 0; p < planes; ++p) {
        cut[p] = rounded_to_bfloat16(low, high);
        if (p + 1 == planes) break;
        low = _mm512_sub_ps(low, widened_bfloat16(_mm512_castsi512_si256(cut[p])));
        high = _mm512_sub_ps(high, widened_bfloat16(_mm512_extracti64x4_epi64(cut[p], 1)));
    }
}

// Rows become columns, of 16 x 16 numbers of 32 bits.
[[gnu::always_inline]] inline void transpose(__m512i (&rows)[16]) {
    __m512i pairs[16], fours[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // fours[i + q]: of rows i to i + 3, in quarter j column 4 j + q.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
        const __m512i even_low = _mm512_shuffle_i32x4(fours[q], fours[4 + q], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(fours[q], fours[4 + q], 0xDD);
        const __m512i even_high = _mm512_shuffle_i32x4(fours[8 + q], fours[12 + q], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(fours[8 + q], fours[12 + q], 0xDD);
        rows[q] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
        rows[8 + q] = _mm512_shuffle_i32x4(even_low, even_high, 0xDD);
        rows[4 + q] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
        rows[12 + q] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xDD);
    }
}

}  // namespace seqkernels
