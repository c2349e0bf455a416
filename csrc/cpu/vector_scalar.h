// One number in place of a vector: the kernels on any processor, and the ones to read first.
//
// The three vector headers offer the same operations; the kernels are templates over the type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/stored.h"

namespace seqkernels {

template <class T>
struct ScalarVector {
    using Element = T;
    using Mask = bool;
    static constexpr int width = 1;
    static constexpr int registers = 16;

    T value;

    static ScalarVector broadcast(T scalar) { return {scalar}; }
    static ScalarVector load(const T* source) { return {*source}; }
    // Lanes from `count` on are zero, and their memory is not touched.
    static ScalarVector load_first(const T* source, int64_t count) {
        return {count > 0 ? *source : T(0)};
    }
    void store(T* target) const { *target = value; }
    void store_first(T* target, int64_t count) const {
        if (count > 0) *target = value;
    }
    // Where vectors are whole cache lines: to a multiple of their size, past the caches, which
    // nobody may read until whoever stored it has called end_streaming.
    static constexpr bool can_stream = false;
    void stream(T* target) const { store(target); }
    static void end_streaming() {}

    // `width` numbers of a 16-bit type, or as load_first and store_first the first `count` of them,
    // and to one; of vectors of float only.
    template <class Narrow>
    static ScalarVector load_widened(const Narrow* source) {
        return {widen(*source)};
    }
    template <class Narrow>
    static ScalarVector load_widened_first(const Narrow* source, int64_t count) {
        return {count > 0 ? widen(*source) : T(0)};
    }
    template <class Narrow>
    void store_narrowed(Narrow* target) const {
        narrow(value, *target);
    }
    template <class Narrow>
    void store_narrowed_first(Narrow* target, int64_t count) const {
        if (count > 0) narrow(value, *target);
    }

    // Whether deinterleave and interleave are there, which make of vectors v[0] to v[count - 1] of
    // numbers that follow each other ones whose lane l of v[i] was number l * count + i, and back.
    static constexpr bool can_interleave = false;

    // Columns of `width` rows, of a 16-bit type in float's place too: lane l of columns[k] is
    // source[l * stride_row + k].
    template <class Number>
    static void load_transposed(const Number* source, int64_t,
                                ScalarVector (&columns)[transposed_columns<Number>]) {
        for (int k = 0; k < transposed_columns<Number>; ++k) columns[k].value = widen(source[k]);
    }

    // Of vectors of four lanes or more, lane 4 q + i is the sum of the q'th four lanes of the i'th
    // of four vectors (sums_of_fours); and lane 4 j + i that of the lanes 4 q + i of fours[j], one
    // after the other the lanes of width / 4 such vectors (sum_of_fours). One lane is its own sum.
    static ScalarVector sum_of_fours(const ScalarVector* fours) { return fours[0]; }

    // Keeps the compiler from loading a value again rather than holding it.
    void stay_in_register() {}

    // Carries an integer in the bits of each lane: select() moves it; the first `count` of them are
    // stored as 32 bits.
    using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
    static ScalarVector from_integer(int64_t integer) {
        const Integer narrow = static_cast<Integer>(integer);
        ScalarVector result;
        std::memcpy(&result.value, &narrow, sizeof narrow);
        return result;
    }
    void store_integers(int32_t* target, int64_t count) const {
        Integer integer;
        std::memcpy(&integer, &value, sizeof integer);
        if (count > 0) *target = static_cast<int32_t>(integer);
    }
    // Of vectors of float: which of the first `count` integers are this one.
    static Mask are_integer(const int32_t* integers, int64_t count, int32_t integer) {
        return count > 0 && *integers == integer;
    }

    friend ScalarVector operator+(ScalarVector a, ScalarVector b) { return {a.value + b.value}; }
    friend ScalarVector operator-(ScalarVector a, ScalarVector b) { return {a.value - b.value}; }
    friend ScalarVector operator*(ScalarVector a, ScalarVector b) { return {a.value * b.value}; }
    friend ScalarVector operator/(ScalarVector a, ScalarVector b) { return {a.value / b.value}; }
    // a * b + c; in two roundings here, since not every processor has a fused one.
    friend ScalarVector multiply_add(ScalarVector a, ScalarVector b, ScalarVector c) {
        return {a.value * b.value + c.value};
    }
    // The second operand where either is NaN.
    friend ScalarVector maximum(ScalarVector a, ScalarVector b) {
        return {a.value > b.value ? a.value : b.value};
    }
    friend ScalarVector minimum(ScalarVector a, ScalarVector b) {
        return {a.value < b.value ? a.value : b.value};
    }
    friend Mask at_most(ScalarVector a, ScalarVector b) { return a.value <= b.value; }
    friend Mask exceeds(ScalarVector a, ScalarVector b) { return a.value > b.value; }
    friend bool has_nan(ScalarVector a) { return a.value != a.value; }
    friend ScalarVector select(Mask mask, ScalarVector yes, ScalarVector no) {
        return mask ? yes : no;
    }
    friend ScalarVector absolute(ScalarVector a) { return {std::fabs(a.value)}; }
    // Of float32 alone: |a| or |b|, whichever is larger; NaN is larger than all numbers.
    friend ScalarVector larger_magnitude(ScalarVector a, ScalarVector b) {
        const ScalarVector of_a = absolute(a), of_b = absolute(b);
        return of_a.value > of_b.value || has_nan(of_a) ? of_a : of_b;
    }
    friend ScalarVector copy_sign(ScalarVector magnitude, ScalarVector sign) {
        return {std::copysign(magnitude.value, sign.value)};
    }
    friend ScalarVector round_to_integer(ScalarVector a) { return {std::nearbyint(a.value)}; }
    // 2^a for whole a within the exponent range of normal numbers; anything for NaN.
    friend ScalarVector power_of_two(ScalarVector a) {
        return {a.value == a.value ? std::ldexp(T(1), static_cast<int>(a.value)) : a.value};
    }
};

}  // namespace seqkernels
