// target[i] += sum over terms of scale * base[offset + i] for i in [0, count): a product with a
// sparse left operand. Terms are added in their order.
//
// Cost: 2 terms columns FLOPs, a load for each multiply-add. Limit: two loads a cycle, if what the
// terms name stays in L1; the target is read and written once.
//
// Measured, GFLOP/s of one core whose multiply-adds alone reach 103 (AMD Zen 3 at AVX2, float32, 64
// columns), by how much the terms name and how many there are:
//             8 KiB   24 KiB   64 KiB (L2)
//   16 terms    65      68         49
//   64 terms    78      78         57
// Tried without gain: 12 vectors at once; offsets of 32 bits; prefetching the next target.
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

template <class T>
struct ScaledRow {
    int64_t offset;
    T scale;
};

// Vectors of columns whose sums stay in registers at a time: chains enough to hide a multiply-add's
// latency.
constexpr int scaled_row_vectors = 8;

template <class Vector, int V, bool last_is_whole>
[[gnu::noinline]] void add_scaled_vectors(typename Vector::Element* target, int64_t count,
                                          const typename Vector::Element* base,
                                          const ScaledRow<typename Vector::Element>* terms,
                                          int64_t terms_count) {
    const int64_t left = count - (V - 1) * Vector::width;
    const auto load = [&](const typename Vector::Element* source, int v) {
        return v < V - 1 || last_is_whole ? Vector::load(source + v * Vector::width)
                                          : Vector::load_first(source + v * Vector::width, left);
    };
    Vector sums[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[v] = load(target, v);
    for (int64_t term = 0; term < terms_count; ++term) {
        const Vector scale = Vector::broadcast(terms[term].scale);
        const typename Vector::Element* source = base + terms[term].offset;
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[v] = multiply_add(scale, load(source, v), sums[v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
        if (v < V - 1 || last_is_whole) {
            sums[v].store(target + v * Vector::width);
        } else {
            sums[v].store_first(target + v * Vector::width, left);
        }
    }
}

template <class Vector>
inline void add_scaled_rows(typename Vector::Element* target, int64_t count,
                            const typename Vector::Element* base,
                            const ScaledRow<typename Vector::Element>* terms, int64_t terms_count) {
    constexpr int64_t at_once = scaled_row_vectors * Vector::width;
    for (; count > at_once; count -= at_once, target += at_once, base += at_once) {
        add_scaled_vectors<Vector, scaled_row_vectors, true>(target, at_once, base, terms,
                                                             terms_count);
    }
    if (count == 0) return;
    with_constant<scaled_row_vectors>(divide_rounding_up(count, Vector::width), [&](auto vectors) {
        if (count % Vector::width == 0) {
            add_scaled_vectors<Vector, vectors, true>(target, count, base, terms, terms_count);
        } else {
            add_scaled_vectors<Vector, vectors, false>(target, count, base, terms, terms_count);
        }
    });
}

}  // namespace seqkernels
