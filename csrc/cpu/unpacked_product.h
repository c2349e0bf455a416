// A product with a right operand that is used once, read where it lies.
//
// Rows by the handful: columns are transposed in registers and multiplied at once. More rows: block
// after block of the operand is packed into a buffer that stays in L1 and multiplied. Against
// packing the whole operand first both save writing and reading it back. Every element of the
// product is the same chain of multiply-adds either way.
//
// Limit: the bandwidth of where the operand lies. Measured, GB/s read by one core, LSTM's recurrent
// weights (AMD Zen 3 at AVX2, float32):
//                                       H 128   H 512   H 1024 (main memory)
//   1 row, in registers                   35      30      10
//   1 row, through the buffer             22      17       8
//   3 rows, in registers / buffer       21/16   19/15    8/6
//   plain sequential reading              47      50      15
// Tried without gain: software prefetching of the next block, or of the same one a row at a time,
// to any level of cache; whole rows to a block; all four gates in registers at once (a fifth faster
// at H 128, but half as fast where rows lie a power of two apart: they push each other out of L1).
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

// sums[m * line + v] += the product of M rows with V vectors of matrix rows, columns[v][lane *
// stride + k] for k in [0, depth), depth a multiple of the columns transposed at once.
template <class Vector, int M, int V, class Left, class Number>
[[gnu::noinline]] void multiply_transposed(Vector* sums, int64_t line, const Left* const* rows,
                                           const Number* const* columns, int64_t stride,
                                           int64_t depth) {
    Vector sum[M][V];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[m][v] = sums[m * line + v];
    }
    constexpr int depths = transposed_columns<Number>;
    for (int64_t k = 0; k < depth; k += depths) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            Vector transposed[depths];
            Vector::load_transposed(columns[v] + k, stride, transposed);
#pragma GCC unroll 8
            for (int i = 0; i < depths; ++i) {
#pragma GCC unroll 4
                for (int m = 0; m < M; ++m) {
                    const Vector left = Vector::broadcast(widen(rows[m][k + i]));
                    sum[m][v] = multiply_add(left, transposed[i], sum[m][v]);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[m * line + v] = sum[m][v];
    }
}

// The same of a panel of numbers that lie as `matrix` says.
template <class Vector, class Left, class Number>
inline void multiply_unpacked(Vector* sums, const Left* const* rows, int64_t count,
                              const PanelLayout<Vector>& layout, int64_t panel, const Number* data,
                              const Matrix& matrix) {
    using T = typename Vector::Element;
    const int64_t stride_row = matrix.stride_row, stride_depth = matrix.stride_column;
    constexpr int64_t most_rows_in_registers = 3;
    // Two vectors' rows fit the ways of L1 that rows a power of two apart share, and two chains of
    // multiply-adds hide behind the transposing; of vectors twice as long, one.
    constexpr int at_once = Vector::registers == 32 ? 1 : 2;
    constexpr int64_t most_vectors = 4;
    const int64_t units = layout.units_of(panel), vectors = units * layout.groups;
    const int64_t column = layout.first_column(panel);
    const bool is_whole = column + units * Vector::width <= layout.columns;
    if (count == 0) return;
    int64_t done = 0;
    if (count <= most_rows_in_registers && stride_depth == 1 && is_whole) {
        constexpr int depths = transposed_columns<Number>;
        done = layout.depth / depths * depths;
        const Number* columns[most_vectors];
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t unit = v / layout.groups, group = v % layout.groups;
            columns[v] =
                data + (group * layout.columns + column + unit * Vector::width) * stride_row;
        }
        for (int64_t v = 0; v < vectors; v += at_once) {
            with_constant<at_once>(smaller(at_once, vectors - v), [&](auto together) {
                with_constant<most_rows_in_registers>(count, [&](auto m) {
                    multiply_transposed<Vector, m, together>(sums + v, vectors, rows, columns + v,
                                                             stride_row, done);
                });
            });
        }
    }
    alignas(64) T packed[packed_block_bytes / sizeof(T)];
    multiply_in_blocks(sums, rows, count, vectors, done, layout.depth, packed_block_bytes,
                       [&](int64_t begin, int64_t depth) {
                           pack_block(packed, layout, panel, depth, data + begin * stride_depth,
                                      stride_row, stride_depth);
                           return packed;
                       });
}

// sums[r * vectors + v] += the product of `count` rows with one panel of the matrix, whose rows are
// the layout's groups and columns, row = group * columns + column.
//   rows:    count pointers, each to layout.depth contiguous elements, or 16-bit ones
//   vectors: units_of(panel) * groups, 4 at most
template <class Vector, class Left>
inline void multiply_unpacked(Vector* sums, const Left* const* rows, int64_t count,
                              const PanelLayout<Vector>& layout, int64_t panel,
                              const Matrix& matrix) {
    with_numbers<typename Vector::Element>(matrix.numbers, [&](const auto* data) {
        multiply_unpacked(sums, rows, count, layout, panel, data, matrix);
    });
}

}  // namespace seqkernels
