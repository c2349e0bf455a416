// A product over listed rows: target(r)[i] = bias[i] + sum over k of left(r)[k] * packed element
// (i, k), for rows r in a range and columns i of the panels in a range.
//
//   left(r):   depth contiguous elements          target(r): columns contiguous elements, of any
//              that the product multiplies                   type that can be stored
//   bias:      columns elements, or null
// Targets alias nothing else. Cost: 2 rows columns depth FLOPs; each panel of weights is read from
// L2, or where it does not fit there from beyond, once for every block of rows: those whose left
// operand takes an eighth of L2, or in tiles half of it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "vector_product.h"

namespace seqkernels {

// Rows of the left operand worked on together.
constexpr int64_t most_rows_together = 512;

template <class Product>
inline int64_t rows_together(int64_t depth) {
    constexpr int64_t block_bytes = Product::cache_bytes / (Product::in_tiles ? 2 : 8);
    constexpr int64_t least_tiles = Product::in_tiles ? 2 : 8;
    constexpr int64_t number_bytes = Product::left_planes * int64_t{sizeof(typename Product::Left)};
    const int64_t tiles = block_bytes / larger(1, depth * number_bytes) / Product::rows;
    return smaller(most_rows_together, larger(least_tiles, tiles) * Product::rows);
}

// The product of rows with `matrix`, or what else multiply_unpacked takes for one, whose panels are
// packed.
//   copies: Product::left_elements of rows_together(layout.depth) rows
template <class Vector, class Product = VectorProduct<Vector>, class Operand, class Left,
          class Target>
inline void multiply_rows(const PanelLayout<Vector>& layout, const typename Product::Packed* packed,
                          const Operand& matrix, Range panels, Range rows,
                          const typename Vector::Element* bias, Left&& left, Target&& target,
                          typename Product::Left* copies = nullptr) {
    using T = typename Vector::Element;
    using Number = std::decay_t<decltype(*left(0))>;
    const int64_t block = rows_together<Product>(layout.depth);
    const Number* given[most_rows_together];
    T scales[most_rows_together];
    for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
        const int64_t count = smaller(block, rows.end - begin);
        for (int64_t m = 0; m < count; ++m) given[m] = left(begin + m);
        const auto prepared =
            Product::prepare(given, Range{0, count}, layout.depth, copies, scales);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const int64_t column = layout.first_column(panel);
            const int64_t units = layout.units_of(panel);
            Product::for_each_block(count, [&](int64_t first, int rows_of_block) {
                Vector sums[Product::panel_rows * Product::vectors];
                Vector start[Product::vectors];
                for (int64_t u = 0; u < units; ++u) {
                    const int64_t i = column + u * Vector::width;
                    start[u] = bias == nullptr ? Vector::broadcast(0)
                                               : load_up_to<Vector>(bias + i, layout.columns - i);
                    if (!Product::accumulates) continue;
                    for (int m = 0; m < rows_of_block; ++m) sums[m * units + u] = start[u];
                }
                Product::multiply_block(sums, prepared.from(first), rows_of_block, layout, panel,
                                        packed, matrix);
                for (int m = 0; m < rows_of_block; ++m) {
                    auto* row = target(begin + first + m);
                    for (int64_t u = 0; u < units; ++u) {
                        const int64_t i = column + u * Vector::width;
                        Vector sum = sums[m * units + u];
                        if (!Product::accumulates) sum = sum + start[u];
                        store_up_to(sum, row + i, layout.columns - i);
                    }
                }
            });
        }
    }
}

}  // namespace seqkernels
