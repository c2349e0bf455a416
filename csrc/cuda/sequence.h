// What convolutions and recurrences agree on.
#pragma once

#include <cmath>
#include <cstdint>

#include "../core/range.h"
#include "cuda/device.h"

namespace seqkernels::cuda {

// The length of a sample of at most `longest`: what a wrong one asks for is not read.
__device__ inline int64_t length_of(const int64_t* lengths, int64_t longest, int64_t sample) {
    return lengths == nullptr ? longest : larger(0, smaller(longest, lengths[sample]));
}

template <class Number>
__device__ inline Number sigmoid(Number x) {
    return 1 / (1 + std::exp(-x));
}

}  // namespace seqkernels::cuda
