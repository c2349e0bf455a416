// Typed, non-owning views of the arrays that cross the native face. Nothing here knows torch or
// Python.
#pragma once

#include <cstdint>

#include "data_type.h"

namespace seqkernels {

constexpr int max_dimensions = 8;

// An array as its owner describes it: element counts and element strides, outermost first.
struct TensorView {
    void* data = nullptr;
    DataType dtype = DataType::float32;
    int device = -1;  // -1: the CPU; else a GPU's index
    int dimensions = 0;
    int64_t sizes[max_dimensions] = {};
    int64_t strides[max_dimensions] = {};
};

}  // namespace seqkernels
