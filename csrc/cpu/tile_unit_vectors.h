// What multiplies tiles (tile_product.h): vectors of pairs of bfloat16 numbers, AVX512_BF16.
//
// VDPBF16PS adds to 16 sums the products of a pair of depths of one row, broadcast, with those of
// 16 columns. Up to 8 rows by two vectors of columns are summed up in registers, 16 by one, or few
// rows by four.
//
// Cost of 32 depths of 16 rows by 32 columns: 512 instructions, 320 loads. Limit: two of either a
// cycle (AMD family 26), twice the multiply-adds of float32. Measured, GFLOP/s of one core,
// operands in cache, depth 512 (AMD family 26, whose clock varies by some 5 %; the instruction
// alone 503):
//   rows                 1    2    3    4    5    6    8   12   16   32  128
//   by two vectors      94  180  261  342  395  461  515  459  508  524  524
//   by four            138  293  390  506  519  518
//
// Tried without gain: pairs of two bfloat16 rows put side by side as they are, not by way of
// float32, where the weight gradients' operands are packed (within 1 %).
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/range.h"
#include "../core/stored.h"
#include "amx.h"
#include "product.h"
#include "tile_instructions.h"
#include "tile_planes.h"

namespace seqkernels {

struct VectorUnit {
    // A thread sets up nothing.
    struct Session {};

    static constexpr int64_t depths_at_once = 2;
    static constexpr bool whole_tiles = false;
    // By two vectors so few rows make too few chains of sums.
    static constexpr int most_few_rows = 6;
    static constexpr int panel_vectors = 4;
    static constexpr int64_t cache_bytes = 1 << 20;

    // Measured, times faster (AMD family 26, two threads, forward and backward of 16 samples of
    // 256 positions of 128 channels, 128 filters of 3 / 336 of 256, 256 of 7 / 256 of 70, 64 of 7):
    //   pools of 2 1.20/1.52/1.47   3 1.15/1.19/1.26   4 1.05/.96/1.05   6 .94/.77/.74
    template <int planes>
    static constexpr int64_t largest_dense_pool = 3;

    // AmxUnit::multiply for one plane, but that rows beyond `count` are neither multiplied nor
    // stored, and that other work comes first: the vector units have no time for it meanwhile.
    template <int planes, int R, int V, ReadOnce, class Sums, class Rows, class Columns,
              class Meanwhile>
    [[gnu::noinline]] static void multiply(const Sums& sums, int count, const Rows& rows,
                                           const Columns& columns, int64_t depth,
                                           int64_t first_turn, Meanwhile&& meanwhile) {
        static_assert(planes == 1);
        const int64_t turns = divide_rounding_up(depth, block_depth);
        for (int64_t turn = 0; turn < turns; ++turn) meanwhile(first_turn + turn);
        constexpr int most = V == 1 ? 16 : 8;
        for (int r = 0; r < (Rows::follow_on ? 1 : R); ++r) {
            const int64_t of_tile =
                Rows::follow_on ? count : smaller(tile_rows, count - r * tile_rows);
            for_each_tile(of_tile, most, [&](int64_t first, int together) {
                with_constant<most>(together, [&](auto m) {
                    multiply_rows<m, V>(sums, r, first, rows, columns, depth);
                });
            });
        }
    }

    // The same for 1 to most_few_rows rows and four vectors, of which the second pair lies `apart`
    // numbers behind the first.
    template <class Sums, class Rows, class Columns, class Meanwhile>
    static void multiply_few_rows(const Sums& sums, int count, const Rows& rows,
                                  const Columns& columns, int64_t apart, int64_t depth,
                                  int64_t turns, Meanwhile&& meanwhile) {
        for (int64_t turn = 0; turn < turns; ++turn) meanwhile(turn);
        with_constant<most_few_rows>(
            count, [&](auto m) { multiply_rows<m, 4>(sums, 0, 0, rows, columns, depth, apart); });
    }

    // KernelTable's bfloat16_products.
    static double products_in_registers(int64_t repetitions, float* result) {
        constexpr int chains = 12;
        constexpr int two_ones = 0x3f803f80;
        const __m512i ones = _mm512_set1_epi32(two_ones);
        __m512 sums[chains];
#pragma GCC unroll 12
        for (int c = 0; c < chains; ++c) sums[c] = _mm512_setzero_ps();
        for (int64_t i = 0; i < repetitions; ++i) {
#pragma GCC unroll 12
            for (int c = 0; c < chains; ++c) sums[c] = add_pair_products(sums[c], ones, ones);
        }
        __m512 least = sums[0];
#pragma GCC unroll 12
        for (int c = 1; c < chains; ++c) least = _mm512_min_ps(least, sums[c]);
        *result = _mm512_cvtss_f32(least);
        return 2.0 * chains * 2 * 16 * static_cast<double>(repetitions);
    }

 private:
    static constexpr int64_t tile_rows = TileConfiguration::rows;
    static constexpr int64_t block_depth = TileConfiguration::depth;

    // M rows from row `first` of tile r on, times V vectors.
    template <int M, int V, class Sums, class Rows, class Columns>
    [[gnu::noinline]] static void multiply_rows(const Sums& sums, int r, int64_t first,
                                                const Rows& rows, const Columns& columns,
                                                int64_t depth, int64_t apart = 0) {
        __m512 sum[M][V];
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                sum[m][v] = _mm512_setzero_ps();
                if (sums.has_start()) {
                    sum[m][v] = _mm512_loadu_ps(reinterpret_cast<const char*>(sums.start(r, v)) +
                                                (first + m) * sums.start_line());
                }
            }
        }
        const int64_t line = rows.line;
        const Bfloat16* packed = columns.first;
        for (int64_t block = 0; block * block_depth < depth; ++block, packed += columns.block) {
            const char* left = rows.at(r, block) + first * line;
            const auto add_pairs = [&](int64_t k) __attribute__((always_inline)) {
                __m512i column[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    column[v] = _mm512_loadu_si512(packed + v / 2 * apart + v % 2 * columns.beside +
                                                   k * 2 * tile_rows);
                }
#pragma GCC unroll 16
                for (int m = 0; m < M; ++m) {
                    int pair;
                    std::memcpy(&pair, left + m * line + k * int64_t{sizeof(pair)}, sizeof(pair));
                    const __m512i of_row = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) {
                        sum[m][v] = add_pair_products(sum[m][v], of_row, column[v]);
                    }
                }
            };
            const int64_t pairs =
                divide_rounding_up(smaller(block_depth, depth - block * block_depth), 2);
            int64_t k = 0;
            for (; k + 4 <= pairs; k += 4) {
#pragma GCC unroll 4
                for (int64_t i = 0; i < 4; ++i) add_pairs(k + i);
            }
            for (; k < pairs; ++k) add_pairs(k);
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                _mm512_storeu_ps(
                    reinterpret_cast<char*>(sums.target(r, v)) + (first + m) * sums.target_line(),
                    sum[m][v]);
            }
        }
    }
};

}  // namespace seqkernels
