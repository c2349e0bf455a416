// How a kernel multiplies in tiles: bfloat16 factors, float32 sums.
//
// A tile of the left operand is 16 rows of 32 depths, one of the right operand 32 depths of 16
// columns, in lines of 16 pairs of depths. Two of either are multiplied at a time by a unit:
// Intel's matrix tiles (tile_unit_amx.h), or with one plane vectors of pairs (tile_unit_vectors.h).
//
// float32 is multiplied as a sum of bfloat16 numbers, its planes: x = x0 + x1 + x2, each the rest
// rounded to nearest (Henry, Tang & Heinecke, "Leveraging the bfloat16 Artificial Intelligence
// Datatype For Higher-Precision Computations", 2019). Of the products of planes those are added
// whose weight is at least that of the last plane, small ones first:
//   planes  products                                      error of a dot product of 512, relative
//     1     x0 y0                                         2.1e-3 (bfloat16)
//     2     x0 y1 + x1 y0 + x0 y0                         3.6e-6
//     3     x0 y2 + x0 y1 + x1 y1 + x1 y0 + x2 y0 + x0 y0 1.8e-7 (multiply-adds one by one: 4.0e-7)
// Three planes hold a float32 number whole, but for what lies below 2^-126, which the instruction
// takes for zero, in factors and products. So where the largest number of a row is below 2^-40, the
// row is scaled by a power of two, exactly; rows whose largest is above 2^120 or not finite, and
// panels of the right operand that are not between those bounds, are multiplied by vectors
// (multiply_unpacked). Which, depends on that row or panel alone. What is so much smaller than the
// largest of its row that it falls below 2^-126 counts as zero. With one plane there is no such
// care but for panels that are not finite: the numbers are bfloat16 then.
//
// The sums pass through memory, on which vectors go to work: they begin with zero, since to load
// what vectors have just stored takes longer than to add it afterwards (an LSTM of 128 units, 64
// sequences of 25 steps: 1.70 ms, so 1.43). Every sum is made in the same order, whatever rows
// stand beside it.
//
// Cost and limit: the unit's.
// In AMX one plane is multiplied as fast as L1 and L2 deliver: per block 4 KiB in 64 cycles. So
// depths are taken 512 at a time, of which two vectors of columns fit L1, and what passes once,
// rows by a panel that stays or the panel by a single tile of rows, is loaded with the hint that L1
// need not keep it. Measured, GFLOP/s of one core, 512 rows (64 rows) by 1024 columns of 512
// depths, plain: 1780 (2160), with the hint 2360 (2450); of 1024 depths 1490 (1610), at 512 a time
// 2000 (2240). Windows of a convolution that share rows are not loaded so (10 % slower), but a
// panel that does not stay is (rows_stay; convolution_windows.h). Three planes gain nothing by
// either.
//
// Tried without gain: to round by cutting off (two planes then err by 2.3e-5).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "product.h"
#include "tile_magnitude.h"
#include "tile_panels.h"
#include "tile_planes.h"
#include "unpacked_product.h"
#include "vector_avx512.h"

namespace seqkernels {

template <class UnitType, int planes>
struct TileProduct : TilePanels<planes> {
    using Unit = UnitType;
    using Panels = TilePanels<planes>;
    using typename Panels::Packed;
    using typename Panels::T;
    using typename Panels::Vector;
    using Left = Bfloat16;
    using Panels::block_depth;
    using Panels::blocks;
    using Panels::cuts;
    using Panels::panel;
    using Panels::tile_rows;
    // Of numbers that multiply() shall read.
    struct Magnitude : TileMagnitude {
        bool is_plain() const { return cuts ? is_plain(bits()) : is_finite(bits()); }
        using TileMagnitude::is_plain;
    };
    // Whether numbers are multiplied as they are stored.
    template <class Number>
    static constexpr bool multiplies_as_stored = Panels::template multiplies_as_stored<Number>;
    static constexpr int rows = 2 * tile_rows;
    // Rows whose sums are kept while a panel passes.
    static constexpr int panel_rows = 128;
    // Vectors of columns of a panel, all groups of them.
    static constexpr int most_vectors = 4;
    static constexpr int vectors = Unit::panel_vectors;
    static constexpr int left_planes = planes;
    static constexpr bool in_tiles = true;
    static constexpr int64_t depths_at_once = Unit::depths_at_once;
    static constexpr bool whole_tiles = Unit::whole_tiles;
    static constexpr int64_t cache_bytes = Unit::cache_bytes;
    static constexpr bool accumulates = false;
    // Whether there are numbers that it cannot multiply: see above. With one plane, those that are
    // not finite, where rows are read beyond their end (multiply).
    static constexpr bool is_partial = true;

    // Whether a convolution of a sample is: not, with three planes, where more than a quarter of
    // the rows would be between samples, `apart` of them for a sample; nor a short sentence, which
    // in a batch is an eighth faster in tiles, but alone, when packing the weights is most of the
    // work, half as fast again by vectors (300 numbers a word, 100 filters of 3: 50 sentences of 20
    // words 0.51 ms, by vectors 0.58; one of 20 words 88 us, 55; one of 56 words 99 us, 84; before
    // maxima over all time went another way, screened_windows.h).
    static constexpr int64_t least_windows = 24;
    static bool pays_for(int64_t windows, int64_t apart) {
        return planes < 3 || (windows >= least_windows && windows >= 3 * apart);
    }

    // Whether, of a product of so many depths, it is rather a tile of rows that stays in L1 while
    // panels pass than a panel while rows do.
    static bool rows_stay(int64_t depth) {
        return whole_tiles && planes == 1 && blocks(depth) > blocks_together;
    }

    // Whether a recurrence is faster in tiles than by vectors: not a single step, which would pack
    // weights to use them once, nor few hidden units; nor, with several planes, steps that would
    // leave tiles empty. Sizes alone decide, so that a sample's bits do not depend on what its
    // batch-mates hold or how long they are. Measured, times faster than by vectors (family 6,
    // model 167, two threads, three planes, inference of 25 steps):
    //            LSTM, H 64   96   128   256   512   1024   RNN, H 128   256   384   512   1760
    //   N 12            .83  .85   .92                            .69   .86  1.00  1.13
    //   N 16            .91  .93  1.03  1.29  1.26   1.26         .71   .94  1.06  1.25   1.15
    //   N 64           1.08 1.14  1.21  1.35  1.57   1.59         .89  1.15  1.36  1.40   1.61
    static bool pays_for(const RecurrenceShape& shape) {
        const int64_t columns = shape.gates() * shape.hidden;
        if (shape.steps == 1) return false;
        return planes == 1 ? columns >= 256 : columns >= 384 && shape.batch >= tile_rows;
    }

    using Session = typename Unit::Session;

    // Whole tiles, and one of what is left.
    template <class Function>
    static void for_each_tile(int64_t count, Function&& function) {
        for (int64_t first = 0; first < count; first += rows) {
            function(first, static_cast<int>(smaller(rows, count - first)));
        }
    }

    template <class Function>
    static void for_each_block(int64_t count, Function&& function) {
        for (int64_t first = 0; first < count; first += panel_rows) {
            function(first, static_cast<int>(smaller(panel_rows, count - first)));
        }
    }

    // Rows of a left operand, of float32 or with one plane of bfloat16, as they are multiplied,
    // tile after tile: [row / 16][depth / 32][plane][row % 16][depth % 32], or row after row where
    // tiles are not multiplied whole; zero beyond the last depth, and anything in place of rows
    // that are missing.
    template <class Number>
    class Rows {
     public:
        // From row `first` on, the first of a tile.
        Rows from(int64_t first) const {
            return {given + first, scales == nullptr ? nullptr : scales + first,
                    tiles + first / tile_rows * tile_elements, tile_elements};
        }
        const Number* const* given;
        // What each row was multiplied with, zero where it cannot be; null without such care.
        const T* scales;
        const Left* tiles;
        int64_t tile_elements;
    };
    static int64_t left_rows(int64_t count) {
        return divide_rounding_up(count, tile_rows) * tile_rows;
    }
    static int64_t left_elements(int64_t count, int64_t depth) {
        return checked_product({left_rows(count), blocks(depth), block_depth, planes});
    }

    // Makes those rows ready that are in `part`, whole tiles of 16 of them but at the end.
    // copies: left_elements(all rows, depth)    scales: all rows
    template <class Number>
    static Rows<Number> prepare(const Number* const* given, Range part, int64_t depth, Left* copies,
                                T* scales) {
        const int64_t tile_elements = blocks(depth) * planes * tile_numbers;
        for (int64_t m = part.begin; m < part.end; ++m) {
            Left* target =
                copies + m / tile_rows * tile_elements + m % tile_rows * left_line(depth);
            if constexpr (multiplies_as_stored<Number>) {
                for (int64_t k = 0; k < depth; k += block_depth, target += left_block) {
                    _mm512_storeu_si512(
                        target, _mm512_maskz_loadu_epi16(first_depths(depth - k), given[m] + k));
                }
            } else {
                scales[m] = cuts ? scale_of(given[m], depth) : T(1);
                const Vector scale = Vector::broadcast(scales[m]);
                for (int64_t k = 0; k < depth; k += block_depth, target += left_block) {
                    Vector low = load_up_to<Vector>(given[m] + k, depth - k), high;
                    high = depth - k > Vector::width
                               ? load_up_to<Vector>(given[m] + k + Vector::width,
                                                    depth - k - Vector::width)
                               : Vector::broadcast(0);
                    if (cuts && scales[m] != T(1)) low = low * scale, high = high * scale;
                    store_planes(low, high, target, tile_numbers);
                }
            }
        }
        return {given, cuts ? scales : nullptr, copies, tile_elements};
    }

    // sums[m * vectors + v] = the product of a block of rows with panel p of a layout of `matrix`,
    // or of what else multiply_unpacked takes for one. sums has room for whole tiles of 16 rows.
    // meanwhile: see product.h.
    template <class Number, class Operand, class Meanwhile = Nothing>
    static void multiply_block(Vector* sums, const Rows<Number>& left, int count,
                               const PanelLayout<Vector>& layout, int64_t p, const Packed* packed,
                               const Operand& matrix, Meanwhile&& meanwhile = {}) {
        const int64_t vectors = layout.units_of(p) * layout.groups;
        const Vector zeros[most_vectors] = {};
        const auto by_vectors = [&](int64_t first, int64_t rows_of_them) {
            add_by_vectors(sums, zeros, 0, left, {first, first + rows_of_them}, layout, p, matrix);
        };
        if (panel(packed, layout, p)[0].bits == 0) return by_vectors(0, count);
        meanwhile.in_turns(turns(count, vectors, layout.depth));
        multiply_copies({sums, vectors, nullptr, 0}, left.tiles, left.tile_elements, count, vectors,
                        panel(packed, layout, p), layout.depth, meanwhile);
        if (left.scales == nullptr) return;
        for (int64_t m = 0; m < count; ++m) {
            const T scale = left.scales[m];
            if (scale == T(0)) {
                by_vectors(m, 1);
            } else if (scale != T(1)) {
                const Vector inverse = Vector::broadcast(T(1) / scale);
                for (int64_t v = m * vectors; v < (m + 1) * vectors; ++v) {
                    sums[v] = sums[v] * inverse;
                }
            }
        }
    }

    // Any number of rows: sums[m * vectors + v] = start[m * line + v] + their product. Of start too
    // whole tiles can be read. Rows that are scaled are multiplied by vectors: what they are added
    // to would be scaled as well, beyond what float32 holds.
    // meanwhile: see product.h.
    template <class Number, class Meanwhile = Nothing>
    static void multiply_from(Vector* sums, const Vector* start, int64_t line,
                              const Rows<Number>& left, int64_t count,
                              const PanelLayout<Vector>& layout, int64_t p, const Packed* packed,
                              const Matrix& matrix, Meanwhile&& meanwhile = {}) {
        const auto by_vectors = [&](Range rows_of_them) {
            add_by_vectors(sums, start, line, left, rows_of_them, layout, p, matrix);
        };
        if (panel(packed, layout, p)[0].bits == 0) return by_vectors({0, count});
        const int64_t vectors_of_row = layout.units_of(p) * layout.groups;
        meanwhile.in_turns(turns(count, vectors_of_row, layout.depth));
        multiply_copies({sums, vectors_of_row, start, line}, left.tiles, left.tile_elements, count,
                        vectors_of_row, panel(packed, layout, p), layout.depth, meanwhile);
        for (int64_t m = 0; left.scales != nullptr && m < count; ++m) {
            if (left.scales[m] != T(1)) by_vectors({m, m + 1});
        }
    }

    // The parts of prepare and multiply_tile for numbers that are known to be plain: 32 depths,
    // from depth k on, of 16 rows from row `first` on, of which column(i) gives those at depth
    // k + i; and a tile from row `first` on.
    template <class Column>
    static void store_columns(Column&& column, Left* copies, int64_t depth, int64_t first,
                              int64_t k) {
        __m512i pairs[planes][tile_rows];
        for (int i = 0; i < tile_rows; ++i) {
            __m512i cut[planes];
            cut_into_pairs(column(2 * i).value, column(2 * i + 1).value, cut);
            for (int p = 0; p < planes; ++p) pairs[p][i] = cut[p];
        }
        Left* tile = copies + first / tile_rows * (blocks(depth) * planes * tile_numbers) +
                     k / block_depth * left_block;
        for (int p = 0; p < planes; ++p, tile += tile_numbers) {
            transpose(pairs[p]);
            for (int m = 0; m < tile_rows; ++m) {
                _mm512_storeu_si512(tile + m * left_line(depth), pairs[p][m]);
            }
        }
    }
    static void multiply_packed_rows(Vector* sums, const Vector* start, const Left* copies,
                                     int64_t first, int64_t count,
                                     const PanelLayout<Vector>& layout, int64_t p,
                                     const Packed* packed) {
        const int64_t tile_elements = blocks(layout.depth) * planes * tile_numbers;
        const int64_t vectors_of_row = layout.units_of(p) * layout.groups;
        multiply_copies({sums, vectors_of_row, start, vectors_of_row},
                        copies + first / tile_rows * tile_elements, tile_elements, count,
                        vectors_of_row, panel(packed, layout, p), layout.depth);
    }

    // sums[m * vectors + v] = the product of up to `rows` rows, `stride` numbers apart, with a
    // panel of plain numbers. Block b of a row's depths begins offsets[b] numbers behind its first,
    // plane p lies `plane` numbers behind plane p - 1. All that is read must be plain, up to whole
    // blocks of depths; whole tiles of rows can be read, and sums has room for them.
    // meanwhile: called for each block of depths of a pair of vectors.
    template <class Meanwhile = Nothing>
    static void multiply(Vector* sums, int count, int64_t vectors, const Left* left, int64_t stride,
                         int64_t plane, const int64_t* offsets, const Packed* panel, int64_t depth,
                         Meanwhile&& meanwhile = {}) {
        constexpr int64_t bytes = sizeof(Left);
        const char* source[2] = {reinterpret_cast<const char*>(left),
                                 reinterpret_cast<const char*>(left + tile_rows * stride)};
        const auto offset = [offsets](int64_t block) { return offsets[block] * bytes; };
        multiply_tiles(sums, count, vectors,
                       LeftTiles<decltype(offset)>{
                           {source[0], source[1]}, plane * bytes, stride * bytes, offset},
                       panel, depth, meanwhile);
    }

    // Stores numbers that lie side by side as a left operand's planes, `plane` numbers apart, and
    // zeros behind them up to `room` numbers, less than a block more.
    template <class Number>
    static void store_left(const Number* numbers, int64_t count, int64_t room, Left* target,
                           int64_t plane, Magnitude& magnitude) {
        int64_t i = 0;
        if constexpr (multiplies_as_stored<Number>) {
            for (; i < room; i += block_depth) {
                const __mmask32 given = first_depths(count - i);
                const __m512i bits = _mm512_maskz_loadu_epi16(given, numbers + i);
                magnitude.take(bits);
                _mm512_mask_storeu_epi16(target + i, first_depths(room - i), bits);
            }
            return;
        }
        for (; i + block_depth <= room; i += block_depth) {
            const Vector low = load_up_to<Vector>(numbers + i, count - i);
            const Vector high =
                load_up_to<Vector>(numbers + i + Vector::width, count - i - Vector::width);
            magnitude.take(low);
            magnitude.take(high);
            store_planes(low, high, target + i, plane);
        }
        for (; i < room; i += Vector::width) {
            const Vector rest = load_up_to<Vector>(numbers + i, count - i);
            magnitude.take(rest);
            __m256i cut[planes];
            cut_into_planes(rest.value, cut);
            for (int p = 0; p < planes; ++p) {
                _mm256_mask_storeu_epi16(target + p * plane + i, Vector::first(room - i), cut[p]);
            }
        }
    }

 private:
    using Panels::columns_at;
    using Panels::tile_numbers;
    // Numbers from a row of a tile of the left operand to the next, and from 32 depths to the next:
    // a tile that is multiplied whole lies in one piece, else a row does.
    static int64_t left_line(int64_t depth) {
        return whole_tiles ? block_depth : blocks(depth) * block_depth;
    }
    static constexpr int64_t left_block = whole_tiles ? planes * tile_numbers : block_depth;
    // Of one plane so many blocks of depths at a time that two vectors of columns, 32 KiB, stay in
    // L1 while all rows pass; more planes are multiplied too slowly to gain by it.
    static constexpr int64_t blocks_together = planes == 1 ? 16 : int64_t{1} << 40;

    static T scale_of(const T* row, int64_t depth) {
        TileMagnitude magnitude;
        for (int64_t k = 0; k < depth; k += Vector::width) {
            magnitude.take(load_up_to<Vector>(row + k, depth - k));
        }
        return magnitude.scale();
    }

    // 32 numbers of a row, plane after plane.
    static void store_planes(Vector low, Vector high, Left* target, int64_t plane) {
        __m512i cut[planes];
        cut_into_lines(low.value, high.value, cut);
        for (int p = 0; p < planes; ++p) _mm512_storeu_si512(target + p * plane, cut[p]);
    }

    // Two tiles of rows, and bytes from a plane to the next, from a row to the next, and from a
    // row's first number to its block of depths.
    template <class Offset>
    struct LeftTiles {
        const char* first[2];
        int64_t plane;
        int64_t line;
        const Offset& offset;
        static constexpr bool follow_on = !whole_tiles;

        const char* at(int r, int64_t block) const { return first[r] + offset(block); }
    };

    // What else a unit is given: see AmxUnit::multiply.
    struct RightTiles {
        const Packed* first;
        int64_t block;
        static constexpr int64_t plane = tile_numbers;
        static constexpr int64_t beside = planes * tile_numbers;
    };

    template <class Number, class Operand>
    static void add_by_vectors(Vector* sums, const Vector* start, int64_t line,
                               const Rows<Number>& left, Range rows_of_them,
                               const PanelLayout<Vector>& layout, int64_t p,
                               const Operand& matrix) {
        const int64_t vectors_of_row = layout.units_of(p) * layout.groups;
        const int64_t first = rows_of_them.begin, count = rows_of_them.end - first;
        Vector* at = sums + first * vectors_of_row;
        begin_sums(at, start + first * line, line, count, vectors_of_row);
        multiply_unpacked(at, left.given + first, count, layout, p, matrix);
    }

    // Where sums go, rows `line` vectors apart, and what they begin with: zeros if that is null.
    struct Sums {
        Vector* first;
        int64_t line;
        const Vector* begin;
        int64_t begin_line;

        // From a row and a vector on; `again`, when the target holds the beginning. Never a copy
        // of another: to read in one what was just stored in parts waits for all stores before.
        Sums from(int64_t row, int64_t vector, bool again) const {
            Vector* const at = first + row * line + vector;
            if (again) return {at, line, at, line};
            return {at, line, begin == nullptr ? nullptr : begin + row * begin_line + vector,
                    begin_line};
        }

        bool has_start() const { return begin != nullptr; }
        const Vector* start(int r, int v) const { return begin + r * tile_rows * begin_line + v; }
        Vector* target(int r, int v) const { return first + r * tile_rows * line + v; }
        int64_t start_line() const { return begin_line * int64_t{sizeof(Vector)}; }
        int64_t target_line() const { return line * int64_t{sizeof(Vector)}; }
    };

    // For other work, of a product in multiply_copies.
    static int64_t turns(int64_t count, int64_t vectors, int64_t depth) {
        return divide_rounding_up(count, rows) * divide_rounding_up(vectors, 2) * blocks(depth);
    }

    template <class Meanwhile = Nothing>
    static void multiply_copies(const Sums& sums, const Left* tiles, int64_t tile_elements,
                                int64_t count, int64_t vectors, const Packed* panel, int64_t depth,
                                Meanwhile&& meanwhile = {}) {
        int64_t turn = 0;
        constexpr int64_t bytes = sizeof(Left);
        const auto offset = [](int64_t block) { return block * left_block * bytes; };
        if constexpr (Unit::most_few_rows > 0) {
            if (count > 0 && count <= Unit::most_few_rows && vectors == 4) {
                const LeftTiles<decltype(offset)> source{
                    {reinterpret_cast<const char*>(tiles), nullptr},
                    tile_numbers * bytes,
                    left_line(depth) * bytes,
                    offset};
                const Packed* columns = columns_at(panel, 0, 2, depth, 0);
                Unit::multiply_few_rows(sums, static_cast<int>(count), source,
                                        RightTiles{columns, 2 * tile_numbers},
                                        columns_at(panel, 2, 2, depth, 0) - columns, depth,
                                        turns(count, vectors, depth), meanwhile);
                return;
            }
        }
        for (int64_t v = 0; v < vectors; v += 2) {
            // Of no depths the sums are what they begin with.
            for (int64_t block = 0; block == 0 || block < blocks(depth); block += blocks_together) {
                const int64_t together = smaller(blocks_together, blocks(depth) - block);
                const int64_t here = smaller(depth - block * block_depth, together * block_depth);
                const int64_t done = block * left_block;
                const int64_t pair = smaller(2, vectors - v);
                const Packed* columns = columns_at(panel, v, pair, depth, block);
                for_each_tile(count, [&](int64_t first, int tile) {
                    const Left* upper = tiles + first / tile_rows * tile_elements + done;
                    const LeftTiles<decltype(offset)> source{
                        {reinterpret_cast<const char*>(upper),
                         reinterpret_cast<const char*>(upper + tile_elements)},
                        tile_numbers * bytes,
                        left_line(depth) * bytes,
                        offset};
                    const Sums of_tile = sums.from(first, v, block > 0);
                    const auto multiply = [&](auto read_once) {
                        multiply_pair<read_once()>(of_tile, tile, pair, source, columns, here, turn,
                                                   meanwhile);
                        turn += together;
                    };
                    using Once = ReadOnce;
                    if constexpr (planes > 1) {
                        multiply(std::integral_constant<Once, Once::neither>());
                    } else if (count <= rows) {
                        multiply(std::integral_constant<Once, Once::columns>());
                    } else {
                        multiply(std::integral_constant<Once, Once::rows>());
                    }
                });
            }
        }
    }

    template <class Left, class Meanwhile>
    static void multiply_tiles(Vector* sums, int count, int64_t vectors, const Left& left,
                               const Packed* panel, int64_t depth, Meanwhile&& meanwhile) {
        for (int64_t v = 0; v < vectors; v += 2) {
            const int64_t pair = smaller(2, vectors - v);
            const Sums of_pair{sums + v, vectors, nullptr, 0};
            const Packed* columns = columns_at(panel, v, pair, depth, 0);
            if (rows_stay(depth)) {
                multiply_pair<ReadOnce::columns>(of_pair, count, pair, left, columns, depth, 0,
                                                 meanwhile);
            } else {
                multiply_pair<ReadOnce::neither>(of_pair, count, pair, left, columns, depth, 0,
                                                 meanwhile);
            }
        }
    }

    // Of these, `count` rows times a pair of vectors of columns, or a single one: one or two tiles
    // of each.
    template <ReadOnce read_once, class Left, class Meanwhile>
    static void multiply_pair(const Sums& sums, int count, int64_t pair, const Left& left,
                              const Packed* columns, int64_t depth, int64_t first_turn,
                              Meanwhile&& meanwhile) {
        const RightTiles right{columns, pair * planes * tile_numbers};
        with_constant<2>(count > tile_rows ? 2 : 1, [&](auto r) {
            with_constant<2>(pair, [&](auto v) {
                Unit::template multiply<planes, r, v, read_once>(sums, count, left, right, depth,
                                                                 first_turn, meanwhile);
            });
        });
    }
};

}  // namespace seqkernels
