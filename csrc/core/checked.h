// Size arithmetic that raises instead of wrapping around.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

namespace seqkernels {

// The product of non-negative sizes; raises std::invalid_argument where it does not fit in 64 bits.
static inline int64_t checked_product(std::initializer_list<int64_t> factors) {
    int64_t product = 1;
    for (int64_t factor : factors) {
        if (__builtin_mul_overflow(product, factor, &product)) {
            throw std::invalid_argument("sizes: expected a product that fits 64 bits");
        }
    }
    return product;
}

// Their sum.
static inline int64_t checked_sum(int64_t a, int64_t b) {
    if (__builtin_add_overflow(a, b, &a)) {
        throw std::invalid_argument("sizes: expected a sum that fits 64 bits");
    }
    return a;
}

}  // namespace seqkernels
