// A product over listed rows: target(r)[i] = bias[i] + sum over k of left(r)[k] * packed element
// (i, k), for rows r in a range and columns i of the panels in a range.
//
//   left(r):   depth contiguous elements          target(r): columns contiguous elements
//   bias:      columns elements, or null
// Targets alias nothing else. Cost: 2 rows columns depth FLOPs; each panel of weights is read from
// L2 once for every block of rows whose left operand takes 128 KiB.
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

template <class Vector, class Left, class Target>
inline void multiply_rows(const PanelLayout<Vector>& layout, const typename Vector::Element* packed,
                          Range panels, Range rows, const typename Vector::Element* bias,
                          Left&& left, Target&& target) {
    using T = typename Vector::Element;
    constexpr int tile_rows = Tile<Vector>::rows;
    constexpr int64_t block_bytes = 128 * 1024;
    const int64_t row_bytes = larger(1, layout.depth * static_cast<int64_t>(sizeof(T)));
    const int64_t block = larger(8, block_bytes / row_bytes / tile_rows) * tile_rows;
    for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
        const int64_t count = smaller(block, rows.end - begin);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const T* weights = packed + layout.offset(panel);
            const int64_t column = layout.first_column(panel);
            const int64_t units = layout.units_of(panel);
            for_each_tile(count, tile_rows, [&](int64_t first, int tile) {
                Vector sums[most_sums<Vector>];
                const T* pointers[tile_rows] = {};
                for (int m = 0; m < tile; ++m) pointers[m] = left(begin + first + m);
                for (int64_t u = 0; u < units; ++u) {
                    const int64_t i = column + u * Vector::width;
                    const Vector start = bias == nullptr
                                             ? Vector::broadcast(0)
                                             : load_up_to<Vector>(bias + i, layout.columns - i);
                    for (int m = 0; m < tile; ++m) sums[m * units + u] = start;
                }
                multiply_accumulate(sums, tile, units, pointers, 1, weights, layout.depth);
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
