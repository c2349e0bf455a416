// What every recurrence kernel agrees on.
#pragma once

#include <cstdint>

#include "../core/recurrence.h"
#include "cuda/device.h"
#include "sequence.h"

namespace seqkernels::cuda {

__device__ inline int64_t sequence_length(const RecurrenceShape& shape, const int64_t* lengths,
                                          int64_t sample) {
    return length_of(lengths, shape.steps, sample);
}

// Where in time a sample's step is.
__device__ inline int64_t position_of(const RecurrenceShape& shape, int64_t length, int64_t step) {
    return shape.reverse ? length - 1 - step : step;
}

}  // namespace seqkernels::cuda
