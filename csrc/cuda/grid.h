// Kernels that give every element a thread.
#pragma once

#include <cstdint>

#include "../core/range.h"
#include "cuda/device.h"

namespace seqkernels::cuda {

// This thread's number in the grid, and the grid's threads.
__device__ inline int64_t thread_in_grid() {
    return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ inline int64_t threads_in_grid() { return int64_t{gridDim.x} * blockDim.x; }

// Threads of a block of the kernels that give a thread an element.
constexpr int threads_per_block = 256;

inline LaunchShape one_thread_each(int64_t elements, void* stream) {
    return {divide_rounding_up(elements, threads_per_block), threads_per_block, 0, stream};
}

}  // namespace seqkernels::cuda
