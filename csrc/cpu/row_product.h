// A product over listed rows: target(r)[i] = bias[i] + sum over k of left(r)[k] * packed element
// (i, k), for rows r in a range and columns i of the panels in a range.
//
//   left(r):   depth contiguous elements          target(r): columns contiguous elements
//   bias:      columns elements, or null
// Targets alias nothing else. Cost: 2 rows columns depth FLOPs; each panel of weights is read from
// L2 once for every block of rows whose left operand takes 128 KiB, 192 rows at most.
#pragma once

#include <cstdint>

#include "vector_product.h"

namespace seqkernels {

// Rows of the left operand worked on together.
constexpr int64_t most_rows_together = 192;

// copies: Product::left_elements of most_rows_together rows.
template <class Vector, class Product = VectorProduct<Vector>, class Left, class Target>
inline void multiply_rows(const PanelLayout<Vector>& layout, const typename Product::Packed* packed,
                          Range panels, Range rows, const typename Vector::Element* bias,
                          Left&& left, Target&& target, typename Product::Left* copies = nullptr) {
    using T = typename Vector::Element;
    constexpr int64_t block_bytes = 128 * 1024;
    const int64_t row_bytes = larger(1, layout.depth * static_cast<int64_t>(sizeof(T)));
    const int64_t block = smaller(
        most_rows_together, larger(8, block_bytes / row_bytes / Product::rows) * Product::rows);
    const T* given[most_rows_together];
    const typename Product::Left* copied[most_rows_together];
    for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
        const int64_t count = smaller(block, rows.end - begin);
        for (int64_t m = 0; m < count; ++m) given[m] = left(begin + m);
        const auto* lefts = Product::prepare(given, count, layout.depth, copies, copied);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const auto* weights = Product::panel(packed, layout, panel);
            const int64_t column = layout.first_column(panel);
            const int64_t units = layout.units_of(panel);
            Product::for_each_tile(count, [&](int64_t first, int tile) {
                Vector sums[Product::rows * Product::vectors];
                for (int64_t u = 0; u < units; ++u) {
                    const int64_t i = column + u * Vector::width;
                    const Vector start = bias == nullptr
                                             ? Vector::broadcast(0)
                                             : load_up_to<Vector>(bias + i, layout.columns - i);
                    for (int m = 0; m < tile; ++m) sums[m * units + u] = start;
                }
                Product::multiply_prepared(sums, tile, units, lefts + first, weights, layout.depth);
                for (int m = 0; m < tile; ++m) {
                    T* row = target(begin + first + m);
                    for (int64_t u = 0; u < units; ++u) {
                        const int64_t i = column + u * Vector::width;
                        store_up_to(sums[m * units + u], row + i, layout.columns - i);
                    }
                }
            });
        }
    }
}

}  // namespace seqkernels
