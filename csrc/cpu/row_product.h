// A product over listed rows: target(r)[g columns + i] = bias[g columns + i] + sum over k of
// left(r)[k] * packed element (g columns + i, k), for rows r in a range.
//
//   left(r):   depth contiguous elements          target(r): groups * columns contiguous elements
//   bias:      groups * columns elements, or null
// Targets alias nothing else. Cost: 2 rows groups columns depth FLOPs; each panel of weights is read
// from L2 once for every block of rows whose left operand takes 128 KiB.
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

template <class Vector, int tile_rows, int groups, class Left, class Target>
inline void multiply_rows(const PanelLayout<Vector>& layout, const typename Vector::Element* packed,
                          Range panels, Range rows, const typename Vector::Element* bias,
                          Left&& left, Target&& target) {
    using T = typename Vector::Element;
    constexpr int64_t block_bytes = 128 * 1024;
    const int64_t row_bytes = larger(1, layout.depth * static_cast<int64_t>(sizeof(T)));
    const int64_t block = larger(8, block_bytes / row_bytes / tile_rows) * tile_rows;
    for (int64_t begin = rows.begin; begin < rows.end; begin += block) {
        const int64_t count = smaller(block, rows.end - begin);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const T* weights = packed + layout.offset(panel);
            const int64_t column = layout.first_column(panel);
            const int units = static_cast<int>(layout.units_of(panel));
            for_each_tile(count, tile_rows, [&](int64_t first, int tile) {
                Vector sums[Tile<Vector>::sums];
                const T* pointers[tile_rows];
                for (int m = 0; m < tile; ++m) pointers[m] = left(begin + first + m);
                for (int u = 0; u < units; ++u) {
                    const int64_t i = column + u * Vector::width;
                    for (int g = 0; g < groups; ++g) {
                        const Vector start = bias == nullptr
                                                 ? Vector::broadcast(0)
                                                 : load_up_to<Vector>(bias + g * layout.columns + i,
                                                                      layout.columns - i);
                        for (int m = 0; m < tile; ++m) sums[(m * units + u) * groups + g] = start;
                    }
                }
                multiply_accumulate(sums, tile, units * groups, pointers, 1, weights, layout.depth);
                for (int m = 0; m < tile; ++m) {
                    T* row = target(begin + first + m);
                    for (int u = 0; u < units; ++u) {
                        const int64_t i = column + u * Vector::width;
                        for (int g = 0; g < groups; ++g) {
                            store_up_to(sums[(m * units + u) * groups + g],
                                        row + g * layout.columns + i, layout.columns - i);
                        }
                    }
                }
            });
        }
    }
}

}  // namespace seqkernels
