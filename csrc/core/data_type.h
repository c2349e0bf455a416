// The element types of arrays, and the 16-bit floating-point ones with their conversions.
//
// float32 holds every value of bfloat16 and float16. Back to them values are rounded to nearest,
// ties to even, as torch does; beyond the largest they become infinite, and NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace seqkernels {

enum class DataType { float32, float64, bfloat16, float16, int32, int64 };

// The upper half of a float32: 8 bits of exponent, 7 of fraction.
struct Bfloat16 {
    uint16_t bits;
};

// IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
struct Float16 {
    uint16_t bits;
};

template <class T>
constexpr bool is_sixteen_bit = std::is_same_v<T, Bfloat16> || std::is_same_v<T, Float16>;

// The type that sums of products of T, and a recurrence's states, are kept in.
template <class T>
using Accumulator = std::conditional_t<is_sixteen_bit<T>, float, T>;

template <class T>
constexpr DataType data_type_of() {
    if constexpr (std::is_same_v<T, float>) return DataType::float32;
    if constexpr (std::is_same_v<T, double>) return DataType::float64;
    if constexpr (std::is_same_v<T, Bfloat16>) return DataType::bfloat16;
    if constexpr (std::is_same_v<T, Float16>) return DataType::float16;
}

static inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float widen(float value) { return value; }
static inline double widen(double value) { return value; }
static inline float widen(Bfloat16 value) { return float_of_bits(uint32_t{value.bits} << 16); }

static inline float widen(Float16 value) {
    const uint32_t sign = (value.bits & 0x8000u) << 16;
    const uint32_t magnitude = value.bits & 0x7FFFu;
    if (magnitude >= 0x7C00u) {  // infinite, or NaN, which is made a quiet one
        const uint32_t quiet = magnitude > 0x7C00u ? 0x400000u : 0u;
        return float_of_bits(sign | 0x7F800000u | quiet | (magnitude & 0x3FFu) << 13);
    }
    if (magnitude >= 0x400u) return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return float_of_bits(sign | bits_of_float(subnormal));
}

static inline void narrow(float value, float& target) { target = value; }
static inline void narrow(double value, double& target) { target = value; }

static inline void narrow(float value, Bfloat16& target) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t last_kept = bits >> 16 & 1u;
    const uint32_t rounded = value == value ? (bits + 0x7FFFu + last_kept) >> 16 : 0x7FC0u;
    target.bits = static_cast<uint16_t>(rounded);
}

static inline void narrow(float value, Float16& target) {
    const uint32_t sign = bits_of_float(value) >> 16 & 0x8000u;
    const uint32_t magnitude = bits_of_float(value) & 0x7FFFFFFFu;
    uint32_t result = 0x7E00u;       // NaN
    if (magnitude >= 0x47800000u) {  // 2^16
        if (magnitude <= 0x7F800000u) result = 0x7C00u;
    } else if (magnitude >= 0x38800000u) {  // 2^-14: rounding may carry into the exponent
        const uint32_t last_kept = magnitude >> 13 & 1u;
        result = (magnitude - (112u << 23) + 0xFFFu + last_kept) >> 13;
    } else {  // the last bit of 0.5 is the smallest float16: the addition rounds
        result = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
    }
    target.bits = static_cast<uint16_t>(sign | result);
}

}  // namespace seqkernels
