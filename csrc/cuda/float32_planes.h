// float32 numbers in the matrix units, which multiply 16-bit ones.
//
// A float32 is the sum of three bfloat16 numbers, its planes: each has the leading 8 bits of what
// those before it leave, and so the sum is exact. Of the nine products of two such sums the six are
// made whose planes' numbers add up to 2 at most; the rest is below 2^-21 of the product, some
// 2^-23 of it on average.
//
// The matrix units cut off what a sum has no bits for, always towards zero: the products of the
// first planes, of 16 numbers, are therefore added by an ordinary addition, which rounds. The other
// products are 2^-8 as large, and so are their errors.
//
// A number that is not finite is its first plane alone. Its products with the others' lower planes,
// infinities of any sign and NaN, are not those of float32: where there is such a number, what is
// finite is multiplied as always, with zeros in place of the rest, and that by itself.
#pragma once

#include "cuda/device.h"

namespace seqkernels::cuda {

__device__ inline bool is_finite(float number) {
    return (bits_of(number) & 0x7F800000u) != 0x7F800000u;
}

// The planes of a number, as bits of bfloat16.
__device__ inline void split(float number, uint32_t (&planes)[3]) {
    planes[0] = number == number ? bits_of(number) >> 16 : 0x7FFFu;
    const float second = is_finite(number) ? number - float_of(planes[0] << 16) : 0;
    planes[1] = bits_of(second) >> 16;
    planes[2] = bits_of(second - float_of(planes[1] << 16)) >> 16;
}

// Eight numbers' planes, two numbers in a word.
struct PlanesOfEight {
    uint32_t words[3][4];
    bool are_finite = true;

    __device__ explicit PlanesOfEight(const uint32_t (&numbers)[8]) {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const float first = float_of(numbers[2 * pair]),
                        second = float_of(numbers[2 * pair + 1]);
            uint32_t lower[3], upper[3];
            split(first, lower);
            split(second, upper);
            are_finite = are_finite && is_finite(first) && is_finite(second);
#pragma unroll
            for (int plane = 0; plane < 3; ++plane) {
                words[plane][pair] = lower[plane] | upper[plane] << 16;
            }
        }
    }
};

// Of two bfloat16 numbers in a word, all bits of those that are not finite.
__device__ inline uint32_t where_special(uint32_t word) {
    const uint32_t lower = (word & 0x7F80u) == 0x7F80u ? 0xFFFFu : 0;
    const uint32_t upper = (word & 0x7F800000u) == 0x7F800000u ? 0xFFFF0000u : 0;
    return lower | upper;
}
// With zeros in their place, in place of the others, and with ones of their signs in their place.
__device__ inline uint32_t finite_part(uint32_t word) { return word & ~where_special(word); }
__device__ inline uint32_t special_part(uint32_t word) { return word & where_special(word); }
__device__ inline uint32_t with_ones(uint32_t word) {
    const uint32_t special = where_special(word);
    return (word & ~special) | (special & ((word & 0x80008000u) | 0x3F803F80u));
}

// first and rest (16, 8) += left (16, 16) right (8, 16)^T, spread over a warp as multiply_add's
// are: products of the first planes, and all others. Of left the planes' words. Whether all numbers
// of the warp are finite is the same for its lanes.
__device__ inline void multiply_add_float32(float (&first)[4], float (&rest)[4],
                                            const uint32_t (&left0)[4], const uint32_t (&left1)[4],
                                            const uint32_t (&left2)[4],
                                            const uint32_t (&right)[3][2], bool are_finite) {
    const auto add = [](float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        multiply_add<Bfloat16>(sums[0], sums[1], sums[2], sums[3], a, b0, b1);
    };
    float products[4] = {};
    // The smallest first.
    add(rest, left1, right[1][0], right[1][1]);
    if (are_finite) {
        add(rest, left2, right[0][0], right[0][1]);
        add(rest, left0, right[2][0], right[2][1]);
        add(rest, left1, right[0][0], right[0][1]);
        add(rest, left0, right[1][0], right[1][1]);
        add(products, left0, right[0][0], right[0][1]);
    } else {
        uint32_t finite[4], special[4], ones[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            finite[i] = finite_part(left0[i]);
            special[i] = special_part(left0[i]);
            ones[i] = with_ones(left0[i]);
        }
        const uint32_t right0 = finite_part(right[0][0]), right1 = finite_part(right[0][1]);
        add(rest, left2, right0, right1);
        add(rest, finite, right[2][0], right[2][1]);
        add(rest, left1, right0, right1);
        add(rest, finite, right[1][0], right[1][1]);
        add(products, finite, right0, right1);
        add(products, special, with_ones(right[0][0]), with_ones(right[0][1]));
        add(products, ones, special_part(right[0][0]), special_part(right[0][1]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) first[i] += products[i];
}

}  // namespace seqkernels::cuda
