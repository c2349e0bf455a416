// What every recurrence kernel agrees on.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/range.h"
#include "../core/recurrence.h"
#include "cuda/device.h"

namespace seqkernels::cuda {

// Steps of a sample: what a wrong length asks for is not read.
__device__ inline int64_t sequence_length(const RecurrenceShape& shape, const int64_t* lengths,
                                          int64_t sample) {
    if (lengths == nullptr) return shape.steps;
    return larger(0, smaller(shape.steps, lengths[sample]));
}

__device__ inline int64_t position_of(const RecurrenceShape& shape, int64_t length, int64_t step) {
    return shape.reverse ? length - 1 - step : step;
}

template <class Number>
__device__ inline Number sigmoid(Number x) {
    return 1 / (1 + std::exp(-x));
}

}  // namespace seqkernels::cuda
