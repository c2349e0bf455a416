// Operands as their owners store them.
#pragma once

#include <cstdint>

#include "data_type.h"

namespace seqkernels {

// Numbers in the type that a kernel computes in or, where that is float32, in a 16-bit one: those
// are widened where the operand is packed.
struct Stored {
    const void* data = nullptr;
    DataType type = DataType::float32;

    Stored() = default;
    Stored(const void* numbers, DataType of_type) : data(numbers), type(of_type) {}
    template <class T>
    Stored(const T* numbers) : data(numbers), type(data_type_of<T>()) {}

    template <class T>
    bool is() const {
        return type == data_type_of<T>();
    }
    // The same numbers from an offset on.
    Stored from(int64_t offset) const {
        const int64_t bytes = type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2;
        return {static_cast<const char*>(data) + offset * bytes, type};
    }
};

// Calls function(pointer) with the numbers' true type, T or one that widens to it.
template <class T, class Function>
inline void with_numbers(const Stored& stored, Function&& function) {
    if constexpr (std::is_same_v<T, float>) {
        if (stored.is<Bfloat16>()) return function(static_cast<const Bfloat16*>(stored.data));
        if (stored.is<Float16>()) return function(static_cast<const Float16*>(stored.data));
    }
    function(static_cast<const T*>(stored.data));
}

// Columns that a vector's load_transposed makes at once: of bfloat16, pairs move as one float does.
template <class Number>
constexpr int transposed_columns = std::is_same_v<Number, Bfloat16> ? 8 : 4;

// A matrix of any strides, which count elements.
struct Matrix {
    Stored numbers;
    int64_t stride_row;
    int64_t stride_column;

    Matrix transposed() const { return {numbers, stride_column, stride_row}; }
};

}  // namespace seqkernels
