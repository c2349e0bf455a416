// Loops that do one thing as fast as the processor can, for the benchmark to hold kernels against:
// multiply-adds without a load, and reading without arithmetic to speak of.
//
// Limits: two multiply-adds a cycle, each ready four or five cycles later, so that ten chains keep
// both units busy; two loads a cycle from L1, and beyond it what the caches and the memory deliver.
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

// `repetitions` rounds of independent chains of multiply-adds in registers. Returns the FLOPs done;
// *result depends on all of them.
template <class Vector>
double multiply_add_chains(int64_t repetitions, typename Vector::Element* result) {
    using T = typename Vector::Element;
    constexpr int chains = 12;
    const Vector half = Vector::broadcast(T(0.5)), one = Vector::broadcast(T(1));
    Vector sums[chains];
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) sums[c] = Vector::broadcast(T(c));
    for (int64_t i = 0; i < repetitions; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < chains; ++c) sums[c] = multiply_add(sums[c], half, one);
    }
    Vector total = sums[0];
#pragma GCC unroll 12
    for (int c = 1; c < chains; ++c) total = total + sums[c];
    total.store_first(result, 1);
    return 2.0 * chains * Vector::width * static_cast<double>(repetitions);
}

// Reads `count` contiguous numbers; *result is the sum of a part of the lanes, and depends on all
// the loads.
template <class Vector>
void read_all(const typename Vector::Element* source, int64_t count,
              typename Vector::Element* result) {
    constexpr int64_t streams = 8;
    Vector sums[streams];
#pragma GCC unroll 8
    for (int64_t s = 0; s < streams; ++s) sums[s] = Vector::broadcast(0);
    int64_t i = 0;
    for (; i + streams * Vector::width <= count; i += streams * Vector::width) {
#pragma GCC unroll 8
        for (int64_t s = 0; s < streams; ++s) {
            sums[s] = sums[s] + Vector::load(source + i + s * Vector::width);
        }
    }
    for (; i < count; i += Vector::width) {
        sums[0] = sums[0] + load_up_to<Vector>(source + i, count - i);
    }
    Vector total = sums[0];
#pragma GCC unroll 8
    for (int64_t s = 1; s < streams; ++s) total = total + sums[s];
    total.store_first(result, 1);
}

}  // namespace seqkernels
