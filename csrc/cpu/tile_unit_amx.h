// What multiplies tiles (tile_product.h): Intel's matrix tiles, AMX.
//
// A tile register holds 16 rows of 64 bytes. TDPBF16PS adds to 16 x 16 sums the product of 16 rows
// of 32 bfloat16 with 32 x 16 of the right operand, of which each row holds a pair of depths for 16
// columns. Two tiles of rows times two of columns fill the eight registers.
//
// Cost of 32 x 32 sums and 32 depths: 4, 12 or 24 products of 16 cycles, 4, 8 or 14 tile loads of
// 8, with one, two or three planes. Limit: the one tile unit, 512 multiply-adds a cycle. Measured,
// GFLOP/s of one core (family 6, model 167, 3.8 GHz; tiles alone 3840, vectors 246, amx_rate.cpp
// and machine_rates.h), 256 windows by 128 columns of 384 depths, random numbers: one plane 2770,
// two 745, three 413. Of zeros three planes reach 500: the processor slows down by what the numbers
// are.
// Tried without gain: prefetching the next block of the panel (up to 4 % slower; rows, 10 to 25 %);
// tiles of one by four and of four by one (10 % slower; a convolution's, of 64 rows that stay in L1
// while columns pass, products alone: of up to 300 channels 2 to 5 % faster, of 512 a third
// slower).
#pragma once

#include <cstdint>

#include "../core/range.h"
#include "../core/stored.h"
#include "amx.h"
#include "tile_instructions.h"
#include "tile_planes.h"

namespace seqkernels {

struct AmxUnit {
    // What a thread sets up before it multiplies.
    class Session {
     public:
        Session() {
            const TileConfiguration configuration;
            asm volatile("ldtilecfg %0" : : "m"(configuration));
        }
        ~Session() { asm volatile("tilerelease"); }
        Session(const Session&) = delete;
        Session& operator=(const Session&) = delete;
    };

    // Depths that are multiplied at once; and whether rows that a tile lacks are read, written and
    // cost as much as others.
    static constexpr int64_t depths_at_once = TileConfiguration::depth;
    static constexpr bool whole_tiles = true;
    // Of so many rows or fewer four vectors of columns are multiplied at once; and vectors of a
    // panel.
    static constexpr int most_few_rows = 0;
    static constexpr int panel_vectors = 2;
    // A core's own cache, of those that have it.
    static constexpr int64_t cache_bytes = 2 << 20;

    // The largest pools whose gradients are faster as dense products than winner by winner, by the
    // number of planes. Measured, times faster (family 6, model 167, two threads, backward
    // of 16 samples of 256 positions of 128 channels, 128 filters of 3):
    //   pools of        2     3     4     6     8    12
    //   one plane     2.9   2.9   2.8   2.8   2.0   1.2
    //   three planes  1.8   1.4   1.2    .8    .4    .5
    template <int planes>
    static constexpr int64_t largest_dense_pool = planes == 1   ? 12
                                                  : planes == 2 ? 6
                                                                : 4;

    // Adds to R x V tiles of sums, or begins them with, the products of R tiles of rows with V of
    // columns, `depth` depths in blocks of 32, of which the last is filled up with zeros: sums in
    // registers 0 to 3, rows in 4 and 5, columns in 6 and 7. Rows that are not wanted cost as much.
    // After each block meanwhile(first_turn + block) is called: the vector units are idle.
    //
    // sums:     start(r, v) and start_line(), where they begin and the bytes between rows, if
    //           has_start(), else with zeros; target(r, v) and target_line(), where they go
    // rows:     at(r, block), where a tile's first row begins; plane and line, bytes between planes
    //           and between rows; follow_on, whether the second tile's rows follow the first one's,
    //           and their sums do
    // columns:  first; beside, plane, block: numbers from a tile to the one beside it, from a plane
    //           and from 32 depths to the next
    template <int planes, int R, int V, ReadOnce read_once, class Sums, class Rows, class Columns,
              class Meanwhile>
    [[gnu::noinline]] static void multiply(const Sums& sums, int, const Rows& rows,
                                           const Columns& columns, int64_t depth,
                                           int64_t first_turn, Meanwhile&& meanwhile) {
        const int64_t blocks = divide_rounding_up(depth, depths_at_once);
        if (sums.has_start()) {
            const int64_t line = sums.start_line();
            load_tile<0>(sums.start(0, 0), line);
            if constexpr (V > 1) load_tile<1>(sums.start(0, 1), line);
            if constexpr (R > 1) load_tile<2>(sums.start(1, 0), line);
            if constexpr (R > 1 && V > 1) load_tile<3>(sums.start(1, 1), line);
        } else {
            asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
        }
        const char *upper = nullptr, *lower = nullptr;
        const Bfloat16* first = columns.first;
        const auto load_rows = [&](int p) {
            constexpr bool once = read_once == ReadOnce::rows;
            load_tile<4, once>(upper + p * rows.plane, rows.line);
            if constexpr (R > 1) load_tile<5, once>(lower + p * rows.plane, rows.line);
        };
        const auto load_columns = [&](int p) {
            constexpr bool once = read_once == ReadOnce::columns;
            load_tile<6, once>(first + p * columns.plane, line_bytes);
            if constexpr (V > 1) {
                load_tile<7, once>(first + columns.beside + p * columns.plane, line_bytes);
            }
        };
        for (int64_t block = 0; block < blocks; ++block) {
            upper = rows.at(0, block);
            lower = rows.at(1, block);
            multiply_planes<planes, R, V>(load_rows, load_columns);
            first += columns.block;
            meanwhile(first_turn + block);
        }
        const int64_t line = sums.target_line();
        store_tile<0>(sums.target(0, 0), line);
        if constexpr (V > 1) store_tile<1>(sums.target(0, 1), line);
        if constexpr (R > 1) store_tile<2>(sums.target(1, 0), line);
        if constexpr (R > 1 && V > 1) store_tile<3>(sums.target(1, 1), line);
    }

 private:
    static constexpr int64_t line_bytes = 64;

    // Small products first. load_rows(p) and load_columns(p) load plane p of one or two tiles.
    template <int planes, int R, int V, class LoadRows, class LoadColumns>
    static void multiply_planes(LoadRows&& load_rows, LoadColumns&& load_columns) {
        const auto multiply_loaded = [] {
            multiply_tile_pairs<0, 4, 6>();
            if constexpr (V > 1) multiply_tile_pairs<1, 4, 7>();
            if constexpr (R > 1) multiply_tile_pairs<2, 5, 6>();
            if constexpr (R > 1 && V > 1) multiply_tile_pairs<3, 5, 7>();
        };
        load_rows(0);
        if constexpr (planes == 3) {
            load_columns(2);
            multiply_loaded();
            load_columns(1);
            multiply_loaded();
            load_rows(1);
            multiply_loaded();
            load_columns(0);
            multiply_loaded();
            load_rows(2);
            multiply_loaded();
            load_rows(0);
        } else if constexpr (planes == 2) {
            load_columns(1);
            multiply_loaded();
            load_columns(0);
            load_rows(1);
            multiply_loaded();
            load_rows(0);
        } else {
            load_columns(0);
        }
        multiply_loaded();
    }
};

}  // namespace seqkernels
