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
// Tried without gain: 12 vectors at once, and 20 at AVX-512 (over time, the input's gradient of 300
// channels: of bfloat16 within 2 %, of float32 56 words a third slower); offsets of 32 bits;
// prefetching the next target. Of bfloat16 two vectors at once, the numbers in even and in odd
// places, which are widened in half of the instructions (over time, family 6, model 207): with 128
// channels up to 8 % faster, but with 300, of which rows lie across cache lines, up to 10 % slower.
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

template <class T>
struct ScaledRow {
    int64_t offset;
    T scale;
};

// Terms, and what their offsets are to be more.
template <class T>
struct ScaledRows {
    const ScaledRow<T>* terms;
    int64_t count;
    int64_t shift;
};

// Vectors of columns whose sums stay in registers at a time: chains enough to hide a multiply-add's
// latency.
constexpr int scaled_row_vectors = 8;

// The last vector of several ends where the columns do, and does some of those of the one before
// once more, unless rows of the base are padded.
template <class Vector, int V, bool adds, bool padded, class Number, class Base>
[[gnu::noinline]] void add_scaled_vectors(Number* target, int64_t count, const Base* base,
                                          const ScaledRows<typename Vector::Element>* lists,
                                          int64_t lists_count) {
    static_assert(!(adds && padded), "the target is not padded");
    const auto place = [&](int v) {
        return !padded && V > 1 && v == V - 1 ? count - Vector::width : int64_t{v} * Vector::width;
    };
    const auto load = [&](const auto* source, int v) {
        return load_up_to<Vector>(source + place(v), padded || V > 1 ? Vector::width : count);
    };
    Vector sums[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[v] = adds ? load(target, v) : Vector::broadcast(0);
    const auto add_terms = [&](Vector(&to)[V], const auto& list) __attribute__((always_inline)) {
        for (int64_t term = 0; term < list.count; ++term) {
            const Vector scale = Vector::broadcast(list.terms[term].scale);
            const Base* source = base + (list.terms[term].offset + list.shift);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) to[v] = multiply_add(scale, load(source, v), to[v]);
        }
    };
    add_terms(sums, lists[0]);
    for (int64_t i = 1; i < lists_count; ++i) {
        Vector of_list[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) of_list[v] = Vector::broadcast(0);
        add_terms(of_list, lists[i]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[v] = sums[v] + of_list[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
        store_up_to(sums[v], target + place(v),
                    padded  ? (v == V - 1 ? count - place(v) : Vector::width)
                    : V > 1 ? Vector::width
                            : count);
    }
}

// With `adds` to what the target holds, else in its place. Of several lists, one at least, the sum
// of each is added to those before. padded: base + offset has whole vectors of columns. The target
// and the base may be of a 16-bit type.
template <class Vector, bool adds = true, bool padded = false, class Number, class Base>
inline void add_scaled_rows(Number* target, int64_t count, const Base* base,
                            const ScaledRows<typename Vector::Element>* lists,
                            int64_t lists_count = 1) {
    const int64_t vectors = divide_rounding_up(count, Vector::width);
    const int64_t blocks = divide_rounding_up(vectors, scaled_row_vectors);
    for (int64_t block = 0; block < blocks; ++block) {
        const Range own = part_of(vectors, 1, block, blocks);
        const int64_t first = own.begin * Vector::width;
        with_constant<scaled_row_vectors>(own.count(), [&](auto v) {
            add_scaled_vectors<Vector, v, adds, padded>(
                target + first, smaller(count, own.end * Vector::width) - first, base + first,
                lists, lists_count);
        });
    }
}

}  // namespace seqkernels
