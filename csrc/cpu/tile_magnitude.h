// Whether numbers can be cut into planes (tile_product.h), and what to scale them with so that they
// can.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../core/data_type.h"
#include "vector_avx512.h"

namespace seqkernels {

// The largest magnitude among numbers, as bits: those of Inf and NaN are larger than any.
class TileMagnitude {
 public:
    void take(Avx512Vector<float> numbers) {
        const __m512i magnitude =
            _mm512_and_si512(_mm512_castps_si512(numbers.value), _mm512_set1_epi32(0x7FFFFFFF));
        largest_ = _mm512_max_epu32(largest_, magnitude);
    }
    void take(__m512i bfloat16_numbers) {
        const __m512i magnitude = _mm512_and_si512(bfloat16_numbers, _mm512_set1_epi16(0x7FFF));
        // The larger of each pair, in the upper half, and what is below it there.
        largest_ = _mm512_max_epu32(largest_,
                                    _mm512_max_epu32(magnitude, _mm512_slli_epi32(magnitude, 16)));
    }
    uint32_t bits() const { return _mm512_reduce_max_epu32(largest_); }

    static constexpr uint32_t exponent_one = 127u << 23;
    // Whether numbers none of which is larger can be cut into planes as they are.
    static bool is_plain(uint32_t largest) {
        constexpr uint32_t least = exponent_one - (40u << 23), most = exponent_one + (120u << 23);
        return largest == 0 || (largest >= least && largest <= most);
    }
    // Whether they are finite even when rounded to bfloat16.
    static bool is_finite(uint32_t largest) { return largest < 0x7F7F8000u; }

    // What to multiply the numbers with so that they can be cut into planes: 1 if they can be as
    // they are, a power of two if they are small, or 0: numbers that are large or not finite cannot
    // (scaled down, small ones among them would be lost).
    float scale() const {
        const uint32_t largest = bits();
        if (is_plain(largest)) return 1;
        if (largest > exponent_one) return 0;
        // Of denormal numbers 2^126 makes normal ones, small but plain enough.
        const uint32_t exponent = largest >> 23 == 0 ? 1 : largest >> 23;
        return float_of_bits((exponent == 1 ? 253 : 254 - exponent) << 23);
    }

 private:
    __m512i largest_ = _mm512_setzero_si512();
};

}  // namespace seqkernels
