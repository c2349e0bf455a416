// The products of few rows with a matrix, or of more with one that is used once, read where it
// lies, row by row.
//
// A row times a matrix row is a dot product of two things that lie side by side: vectors of both
// are loaded and multiplied, nothing is transposed or packed. Each lane sums every width'th
// product; in the end fours of lanes are summed, and then their sums. Every element is the same
// sums whatever rows it is computed beside, so a sample's bits do not depend on its batch-mates;
// they differ in the last places from those of a product by panels (product.h).
//
// Scratch: sums of fours of lanes of a tile of rows, on the stack; of a matrix whose rows are not
// contiguous a copy of one vector's worth of them, owned by who calls.
//
// Cost: 2 M R FLOPs for each depth of M rows and R matrix rows, for which M + R vectors are loaded,
// and 2 M R / 16 shuffles in the end. Limit: the bandwidth of where the matrix lies for few rows,
// two multiply-adds a cycle for many. Measured, us of one step on two threads, by panels
// (unpacked_product.h) / row by row (family 6, model 167 at AVX-512, float32):
//   LSTM, N 1, H 64 4.5/3.0, H 128 9.9/6.8, H 256 32/14, H 512 217/189; N 16, H 128 28/24,
//   H 256 90/75; N 64, H 256 243/269.   RNN, N 1, H 256 10.2/6.1, H 512 28/13
// (2 us of each for the call itself).
//
// Tried without gain: fetching the next rows into L2 meanwhile (N 1, H 1536, from beyond it: 10 %
// slower); summing lanes by transposing them through memory (N 16, H 128: 34 us); all
// of a vector's worth of matrix rows for a tile of rows before the next tile (N 16, H 256: 78 us);
// keeping a matrix vector in a register, which the compiler loads once for every row (AMD family
// 26: AVX-512 within 2 %, but N 2, H 1536 from memory 7 to 12 % slower; AVX2 6 % slower to 7 %
// faster); prefetching, any distance in the same rows or in the next (the same processor, 4 rows:
// 54 GB/s from L3, without it 62).
#pragma once

#include <cstdint>
#include <type_traits>

#include "product.h"

namespace seqkernels {

// Rows multiplied at once by four matrix rows: 6 x 4 + 6 + 1 registers, or 3 x 4 + 3 + 1.
template <class Vector>
constexpr int unpacked_tile_rows = Vector::registers == 32 ? 6 : 3;
// Matrix rows multiplied at once with M rows: twice four where registers are left, since so many
// sums hide the latency of a multiply-add.
template <class Vector, int M>
constexpr int matrix_rows_at_once =
    static_cast<int>(smaller(Vector::width, M * 8 + M + 1 <= Vector::registers ? 8 : 4));
// Rows that pass a few matrix rows before the next ones are read.
constexpr int64_t unpacked_block_rows = 96;
// Lanes that are summed first.
template <class Vector>
constexpr int summed_lanes = static_cast<int>(smaller(Vector::width, 4));

// Some rows of a matrix with their numbers side by side, of the type they have: row r from
// copies[r * depth] on.
template <class T>
inline void copy_rows(const Matrix& matrix, Range rows, int64_t depth, T* copies) {
    with_numbers<T>(matrix.numbers, [&](const auto* data) {
        auto* target = static_cast<std::decay_t<decltype(*data)>*>(static_cast<void*>(copies));
        for (int64_t r = rows.begin; r < rows.end; ++r) {
            for (int64_t k = 0; k < depth; ++k) {
                target[r * depth + k] = data[r * matrix.stride_row + k * matrix.stride_column];
            }
        }
    });
}

// A row and R matrix rows, of `depth` contiguous numbers each, per term of a sum of products.
constexpr int most_terms = 2;

template <class T>
struct Term {
    const T* const* rows;  // null for a term that is zero
    Matrix matrix;
    int64_t depth;

    // The same of the rows from `first` on.
    Term from(int64_t first) const {
        return {rows == nullptr ? nullptr : rows + first, matrix, depth};
    }

    // Room for the copies of matrix rows that are not contiguous.
    int64_t copied(int64_t count) const { return matrix.stride_column == 1 ? 0 : count * depth; }

    // The same of `count` matrix rows from `first` on, contiguous each.
    Term contiguous(int64_t first, int64_t count, T* copies) const {
        const Stored numbers = matrix.numbers.from(first * matrix.stride_row);
        if (matrix.stride_column == 1) return {rows, {numbers, matrix.stride_row, 1}, depth};
        copy_rows({numbers, matrix.stride_row, matrix.stride_column}, {0, count}, depth, copies);
        return {rows, {{copies, numbers.type}, depth, 1}, depth};
    }
};

// sum[m][r] += the products of M rows with R matrix rows, lane by lane.
template <class Vector, int M, int R, class Number>
[[gnu::always_inline]] inline void add_products(Vector (&sum)[M][R],
                                                const typename Vector::Element* const* rows,
                                                const Number* const* matrix_rows, int64_t depth) {
    const typename Vector::Element* row[M];
    const Number* matrix_row[R];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) row[m] = rows[m];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) matrix_row[r] = matrix_rows[r];
    const auto add = [&](int64_t k, int64_t count) __attribute__((always_inline)) {
        Vector left[M];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) left[m] = load_up_to<Vector>(row[m] + k, count);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Vector right = load_up_to<Vector>(matrix_row[r] + k, count);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) sum[m][r] = multiply_add(left[m], right, sum[m][r]);
        }
    };
    const int64_t whole = depth / Vector::width * Vector::width;
    for (int64_t k = 0; k < whole; k += Vector::width) add(k, Vector::width);
    if (whole < depth) add(whole, depth - whole);
}

// The terms' products of M rows with R matrix rows from `first` of `present` on; those beyond are
// the last one. fours[m * width / 4 + r / 4]: the sums of fours of lanes (Vector::sums_of_fours).
template <class Vector, int M, int R, class Number>
[[gnu::noinline]] void multiply_rows(Vector* fours,
                                     const Term<typename Vector::Element> (&terms)[most_terms],
                                     int64_t row, int64_t first, int64_t present) {
    Vector sum[M][R];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[m][r] = Vector::broadcast(0);
    }
    for (const auto& term : terms) {
        if (term.rows == nullptr) continue;
        const Number* matrix_rows[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            matrix_rows[r] = static_cast<const Number*>(term.matrix.numbers.data) +
                             smaller(first + r, present - 1) * term.matrix.stride_row;
        }
        add_products(sum, term.rows + row, matrix_rows, term.depth);
    }
    constexpr int together = summed_lanes<Vector>;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r += together) {
            Vector& target = fours[(m * Vector::width + r) / together];
            if constexpr (together == 4) {
                target =
                    Vector::sums_of_fours(sum[m][r], sum[m][r + 1], sum[m][r + 2], sum[m][r + 3]);
            } else {
                target = sum[m][r];
            }
        }
    }
}

// sums[m * line], lane r += the terms' products of row m, of `count`, up to unpacked_block_rows,
// with matrix row first + r, `present` of a vector's worth; the lanes beyond hold anything. copies:
// room for what either term copies of a vector's worth.
template <class Vector>
inline void add_terms(Vector* sums, int64_t line, int64_t count, int64_t first, int64_t present,
                      const Term<typename Vector::Element> (&given)[most_terms],
                      typename Vector::Element* copies) {
    using T = typename Vector::Element;
    constexpr int tile_rows = unpacked_tile_rows<Vector>;
    constexpr int vectors = Vector::width / summed_lanes<Vector>;
    constexpr int block = static_cast<int>(smaller(Vector::width, 8));
    const auto add = [&](const auto* number, const Term<T>(&terms)[most_terms]) {
        using Number = std::decay_t<decltype(*number)>;
        Vector fours[unpacked_block_rows * vectors];
        for (int begin_row = 0; begin_row < Vector::width; begin_row += block) {
            for_each_tile(count, tile_rows, [&](int64_t begin, int tile) {
                with_constant<tile_rows>(tile, [&](auto m) {
                    constexpr int at_once = matrix_rows_at_once<Vector, m>;
                    for (int r = begin_row; r < begin_row + block; r += at_once) {
                        multiply_rows<Vector, m, at_once, Number>(
                            fours + begin * vectors + r / summed_lanes<Vector>, terms, begin, r,
                            present);
                    }
                });
            });
        }
        for (int64_t m = 0; m < count; ++m) {
            sums[m * line] = sums[m * line] + Vector::sum_of_fours(fours + m * vectors);
        }
    };
    const Term<T> terms[most_terms] = {
        given[0].contiguous(first, present, copies),
        given[1].contiguous(first, present, copies + given[0].copied(Vector::width))};
    with_numbers<T>(terms[0].matrix.numbers, [&](const auto* number) { add(number, terms); });
}

}  // namespace seqkernels
