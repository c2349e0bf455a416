// The product engine: every dense product of the package.
//
// A tile of the product is M rows of the left operand times V vectors of columns of the right one,
// accumulated in M x V vector registers over the whole depth. The left operand is read where it
// lies, through one pointer a row, so that windows of a sequence, samples of a batch and time steps
// need no copy. The right operand is packed once a call into panels (pack_panels).
//
// Every element of a product is one chain of multiply-adds in order of depth, whatever tile it
// falls into: a sample's bits do not depend on its batch-mates, nor on how work is split among
// threads.
//
// Cost of a tile: 2 M V width depth FLOPs; per step of depth V vector loads and M broadcasts feed M
// V multiply-adds. Limit: two fused multiply-adds a cycle.
//
// Measured, GFLOP/s of one core, operands in cache, depth 64 to 4096 (AMD Zen 4 at AVX2, float32):
//   rows x vectors   6x2   5x2   3x4   2x4   6x1   1x4
//                     91    86    90    67    68    44
// (AMD Zen 3 at AVX2)
//   rows x vectors   6x2   5x2   4x2   3x4   2x4   6x1   1x4
//                    100   100    99   101    95    74    50
// (2x4 with columns loaded once for both rows; twice, as the compiler has it, 76)
// Tried without gain: an LSTM's four gates in two passes of 6x2 in place of tiles of 3x4 (equal
// within the noise at N 16 and 50, H 128 to 300; from main memory, H 1024, a third slower); panels
// of 12 vectors in tiles of 4x3 (82 to 92); prefetching a panel that is in cache.
//
// A panel from beyond the caches is fetched some way ahead, since multiply-adds that wait for it
// fill the scheduler before there are as many loads under way as memory can serve. Measured, GB/s
// of two cores (family 6, model 167; 64 MiB packed, huge pages; reading alone, 57):
//   rows          1    2    4    6
//   not fetched  57   54   49   45
//   fetched      57   55   53   54
// With vectors of whole cache lines (AVX-512) fetching a panel from L2 into L1 pays too, if rows
// are not so few that loads are the limit: LSTM inference of 8 to 64 sequences, H 128 to 512, 3 to
// 6 % (AMD family 26, one thread; of 1 and 2 sequences within the noise, of AVX2's vectors 0 to 2 %
// slower, of a convolution, whose panels L1 holds, 3 % slower to 1 % faster).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/checked.h"
#include "../core/range.h"
#include "../core/scratch.h"
#include "../core/stored.h"

namespace seqkernels {

// Register tiling: the rows and vectors of columns whose sums, with the column vectors and one
// broadcast, fit the register file, with loads a step below multiply-adds a step.
template <class Vector>
struct Tile {
    // 16 registers: 6 x 2 + 2 + 1. 32 registers: 6 x 4 + 4 + 1.
    static constexpr int rows = 6;
    static constexpr int vectors = Vector::registers == 32 ? 4 : 2;
    // Of 4 vectors 16 registers hold these rows' sums: 3 x 4 + 3 + 1.
    static constexpr int narrow_rows = 3;
};

// Sums of the largest tile.
template <class Vector>
constexpr int most_sums = Tile<Vector>::rows * Tile<Vector>::vectors;

// A vector of `count` numbers, which may be of a 16-bit type; lanes beyond are zero.
template <class Vector, class Number>
inline Vector load_up_to(const Number* source, int64_t count) {
    if constexpr (std::is_same_v<Number, typename Vector::Element>) {
        return count >= Vector::width ? Vector::load(source) : Vector::load_first(source, count);
    } else {
        return count >= Vector::width ? Vector::load_widened(source)
                                      : Vector::load_widened_first(source, count);
    }
}

template <class Vector, class Number>
inline void store_up_to(Vector vector, Number* target, int64_t count) {
    if constexpr (std::is_same_v<Number, typename Vector::Element>) {
        if (count >= Vector::width) {
            vector.store(target);
        } else {
            vector.store_first(target, count);
        }
    } else {
        if (count >= Vector::width) {
            vector.store_narrowed(target);
        } else {
            vector.store_narrowed_first(target, count);
        }
    }
}

// `count` numbers in another type.
template <class Vector, class From, class To>
inline void convert_numbers(const From* source, To* target, int64_t count) {
    for (int64_t i = 0; i < count; i += Vector::width) {
        store_up_to(load_up_to<Vector>(source + i, count - i), target + i, count - i);
    }
}

// Bytes between what is multiplied and what is fetched meanwhile. Of 2 to 4 KiB each did as well
// (family 6, model 167, where more was not tried); 8 in place of 4 are up to 9 % faster where the
// weights come from memory or L3, else within 2 % (AMD family 26, LSTM of N 3 to 64, H 256 to
// 2048).
constexpr int64_t fetched_ahead = 8192;

// The micro-kernel: sums[m * V + v] += rows[m][k * step] * packed[k * V + v] for k in [0, depth), v
// in [0, V). Kept out of line, so that each tile size is compiled once; going through memory for
// the sums costs two accesses per sum and call, against `depth` multiply-adds.
//
// fetches: whether what comes some way behind is asked for; past the end that is done in vain.
// Left: what rows hold, the vectors' numbers or 16-bit ones.
template <class Vector, int M, int V, bool fetches, class Left>
[[gnu::noinline]] void multiply_tile(Vector* sums, const Left* const* rows, int64_t step,
                                     const typename Vector::Element* packed, int64_t depth) {
    // Else the compiler would rather load each vector of columns twice, once a row.
    constexpr bool hold_columns = M == 2 && V == 4;
    constexpr int64_t line_numbers = cache_line_bytes / sizeof(typename Vector::Element);
    const Left* row[M];
    Vector sum[M][V];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        row[m] = rows[m];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[m][v] = sums[m * V + v];
    }
    for (int64_t k = 0; k < depth; ++k, packed += V * Vector::width) {
        Vector columns[V];
        if constexpr (fetches) {
#pragma GCC unroll 8
            for (int64_t line = 0; line < V * Vector::width; line += line_numbers) {
                __builtin_prefetch(packed + fetched_ahead / sizeof(*packed) + line);
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            columns[v] = Vector::load(packed + v * Vector::width);
            if constexpr (hold_columns) columns[v].stay_in_register();
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vector left = Vector::broadcast(widen(row[m][k * step]));
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[m][v] = multiply_add(left, columns[v], sum[m][v]);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[m * V + v] = sum[m][v];
    }
}

// Sums of `count` rows of `vectors` vectors begin as those of start, `line` vectors apart.
template <class Vector>
inline void begin_sums(Vector* sums, const Vector* start, int64_t line, int64_t count,
                       int64_t vectors) {
    for (int64_t m = 0; m < count; ++m) {
        for (int64_t v = 0; v < vectors; ++v) sums[m * vectors + v] = start[m * line + v];
    }
}

// Calls function(std::integral_constant<int, value>) for a run-time value in [1, Largest].
template <int Largest, class Function>
inline void with_constant(int64_t value, Function&& function) {
    if constexpr (Largest > 1) {
        if (value < Largest) {
            with_constant<Largest - 1>(value, function);
            return;
        }
    }
    function(std::integral_constant<int, Largest>{});
}

// Rows of a tile whose sums of `vectors` vectors of columns the registers hold.
template <class Vector>
constexpr int tile_rows_for(int64_t vectors) {
    return vectors <= Tile<Vector>::vectors ? Tile<Vector>::rows : Tile<Vector>::narrow_rows;
}

// sums[m * vectors + v] += the product of a tile of up to tile_rows_for(vectors) rows and up to
// Tile::vectors, or 4, vectors.
//   rows:   rows_count pointers, each to `depth` elements `step` apart
//   packed: depth x vectors x width elements, one panel of pack_panels
template <class Vector, bool fetches = false, class Left>
inline void multiply_accumulate(Vector* sums, int rows_count, int64_t vectors,
                                const Left* const* rows, int64_t step,
                                const typename Vector::Element* packed, int64_t depth) {
    constexpr int at_once = Tile<Vector>::vectors;
    if (vectors <= at_once) {
        with_constant<at_once>(vectors, [&](auto v) {
            with_constant<Tile<Vector>::rows>(rows_count, [&](auto m) {
                multiply_tile<Vector, m, v, fetches>(sums, rows, step, packed, depth);
            });
        });
        return;
    }
    with_constant<Tile<Vector>::narrow_rows>(rows_count, [&](auto m) {
        multiply_tile<Vector, m, 4, fetches>(sums, rows, step, packed, depth);
    });
}

// How the columns of a packed operand are laid out: `groups` rows of `columns` each (an LSTM's four
// gates of H, else one), cut into panels of `units` vectors of columns, each vector once per group:
// packed[panel][k][unit][group][lane] holds element (group * columns + column, k) of the operand,
// column = (first_unit(panel) + unit) * width + lane. Columns beyond the last are zero. All panels
// but the last hold `units`; or, with even_panels, none holds more than one unit more than another.
template <class Vector>
struct PanelLayout {
    int64_t columns;
    int64_t depth;
    int64_t units;
    int64_t groups;
    int64_t even_panels =
        0;  // 0, or the number of panels, over which the vectors are spread evenly

    // Two threads that share the panels have alike to do, where each column takes its time. (With
    // an odd number of panels they have as it is: the second has one more, and the last is in it.)
    static PanelLayout even(int64_t columns, int64_t depth, int64_t units) {
        PanelLayout layout{columns, depth, units, 1};
        const int64_t panels = layout.panels();
        if (panels % 2 == 0 && layout.vectors() % units != 0) layout.even_panels = panels;
        return layout;
    }

    int64_t vectors() const { return divide_rounding_up(columns, Vector::width); }
    int64_t panels() const { return divide_rounding_up(vectors(), units); }
    int64_t first_unit(int64_t panel) const {
        return even_panels > 0 ? vectors() * panel / even_panels
                               : smaller(vectors(), panel * units);
    }
    int64_t units_of(int64_t panel) const { return first_unit(panel + 1) - first_unit(panel); }
    int64_t first_column(int64_t panel) const { return first_unit(panel) * Vector::width; }
    int64_t offset(int64_t panel) const {
        return first_unit(panel) * groups * Vector::width * depth;
    }
    int64_t elements() const { return checked_product({vectors(), groups, Vector::width, depth}); }
};

// Whether an operand is too large for the L2 of two cores, so that it comes from beyond.
template <class Vector>
inline bool is_beyond_caches(const PanelLayout<Vector>& layout) {
    constexpr int64_t most_cached_bytes = 4 << 20;
    return layout.elements() * int64_t{sizeof(typename Vector::Element)} > most_cached_bytes;
}

// Depths packed of one vector's worth of rows before those of the next: rows that lie a power of
// two apart would push each other out of the cache if each were read to its end.
constexpr int64_t pack_depth = 64;

// Depths of a matrix go where they come.
struct InOrder {
    int64_t operator()(int64_t depth) const { return depth; }
};

// Columns transposed at once: whole lines of rows where registers hold them, since rows that lie a
// power of two apart push each other out of L1 before they are read a second time.
template <class Vector, class Number>
constexpr int columns_at_once =
    Vector::width == 16 && std::is_same_v<Number, float> ? 16 : transposed_columns<Number>;

// Packs `depth`, up to pack_depth, columns of a vector's worth of rows: target[place(first + k) *
// line + lane] = source[lane * stride_row + k * stride_depth], zero for lanes from `present` on.
// fetches: whether what is packed next but for other columns is asked for.
template <class Vector, class Number, class Place>
inline void pack_columns(typename Vector::Element* target, int64_t line, const Place& place,
                         int64_t first, int64_t depth, int64_t present, const Number* source,
                         int64_t stride_row, int64_t stride_depth, bool fetches) {
    using T = typename Vector::Element;
    const auto store = [&](Vector column, int64_t k) {
        column.store(target + place(first + k) * line);
    };
    if (stride_row == 1) {
        for (int64_t k = 0; k < depth; ++k) {
            store(load_up_to<Vector>(source + k * stride_depth, present), k);
        }
        return;
    }
    const auto transpose = [&](auto together, const auto* rows, int64_t stride, Range depths) {
        constexpr int at_once = decltype(together)::value;
        for (int64_t k = depths.begin; k < depths.end; k += at_once) {
            Vector columns[at_once];
            Vector::load_transposed(rows + k, stride, columns);
#pragma GCC unroll 16
            for (int64_t i = 0; i < at_once; ++i) {
                if (k + i < depth) store(columns[i], k + i);
            }
        }
    };
    constexpr std::integral_constant<int, columns_at_once<Vector, Number>> whole_line;
    constexpr std::integral_constant<int, transposed_columns<Number>> part_of_line;
    if (stride_depth == 1 && present >= Vector::width && depth % part_of_line == 0) {
        // Into L2; past the end in vain.
        constexpr int64_t fetched = cache_line_bytes / sizeof(Number);
        for (int64_t lane = 0; fetches && lane < Vector::width; ++lane) {
            for (int64_t k = 0; k < depth; k += fetched) {
                __builtin_prefetch(source + lane * stride_row + depth + k, 0, 2);
            }
        }
        const int64_t in_lines = depth / whole_line * whole_line;
        transpose(whole_line, source, stride_row, {0, in_lines});
        transpose(part_of_line, source, stride_row, {in_lines, depth});
        return;
    }
    // Rows that do not lie as load_transposed wants them, or are not all there, are copied first.
    T copied[Vector::width * pack_depth];
    for (int64_t lane = 0; lane < Vector::width; ++lane) {
        T* row = copied + lane * pack_depth;
        const Number* from = source + lane * stride_row;
        const int64_t here = lane < present ? depth : 0;
        if (stride_depth == 1) {
            convert_numbers<Vector>(from, row, here);
        } else {
            for (int64_t k = 0; k < here; ++k) row[k] = widen(from[k * stride_depth]);
        }
        for (int64_t k = here; k < divide_rounding_up(depth, 4) * 4; ++k) row[k] = 0;
    }
    transpose(std::integral_constant<int, transposed_columns<T>>(), copied, pack_depth, {0, depth});
}

// Packs `depth` depths of one panel of a matrix whose row group * columns + column, at depth k,
// lies at data[row * stride_row + k * stride_depth]; it goes to depth place(k) of target.
//
// Limit: the bandwidth of where the matrix lies. Measured, GB/s read by one core, LSTM's recurrent
// weights (AMD Zen 3 at AVX2, float32), one element at a time / transposed in registers:
//   H 128   H 256   H 512     H 1024
//   3.4/18  3.3/16  1.1/20    1.0/5 (main memory, which takes the packed ones as well)
// Whole lines transposed, and of a matrix beyond the caches the next block's fetched, 25 rows
// multiplied by each block (two cores, family 6, model 167, AVX-512): H 512 0.28 to 0.22 ms,
// 1024 1.38 to 1.09, 2048 11.5 to 4.3 (7 where the weights come from main memory). Tried without
// gain: blocks of 128 and 256 depths; fetching between the tiles that multiply, the next block's
// lines or the next panel's in order; fetching into L1.
template <class Vector, class Number, class Place = InOrder>
inline void pack_block(typename Vector::Element* target, const PanelLayout<Vector>& layout,
                       int64_t panel, int64_t depth, const Number* data, int64_t stride_row,
                       int64_t stride_depth, const Place& place = {}) {
    const int64_t units = layout.units_of(panel);
    const int64_t line = units * layout.groups * Vector::width;
    for (int64_t begin = 0; begin < depth; begin += pack_depth) {
        for (int64_t unit = 0; unit < units; ++unit) {
            const int64_t column = layout.first_column(panel) + unit * Vector::width;
            for (int64_t group = 0; group < layout.groups; ++group) {
                pack_columns<Vector>(
                    target + (unit * layout.groups + group) * Vector::width, line, place, begin,
                    smaller(pack_depth, depth - begin),
                    smaller(Vector::width, layout.columns - column),
                    data + (group * layout.columns + column) * stride_row + begin * stride_depth,
                    stride_row, stride_depth, is_beyond_caches(layout));
            }
        }
    }
}

// The same of a matrix, whose rows are the layout's groups and columns.
template <class Vector, class Place = InOrder>
inline void pack_panel(typename Vector::Element* target, const PanelLayout<Vector>& layout,
                       int64_t panel, int64_t depth, const Matrix& matrix,
                       const Place& place = {}) {
    with_numbers<typename Vector::Element>(matrix.numbers, [&](const auto* data) {
        pack_block(target, layout, panel, depth, data, matrix.stride_row, matrix.stride_column,
                   place);
    });
}

// The panels in `range`, all their depths.
template <class Vector>
inline void pack_panels(typename Vector::Element* packed, const PanelLayout<Vector>& layout,
                        Range range, const Matrix& matrix) {
    for (int64_t panel = range.begin; panel < range.end; ++panel) {
        pack_panel(packed + layout.offset(panel), layout, panel, layout.depth, matrix);
    }
}

// Meanwhile: other work that a product in matrix tiles (AMX) has done between its own instructions,
// since the vector units are idle. in_turns(count) tells it how many turns it will have,
// meanwhile(turn) is each of them. Products of bfloat16 by vectors have it done before they begin,
// other products by vectors not at all, and products of no depth have no turns.
// Nothing is no such work.
struct Nothing {
    void in_turns(int64_t) const {}
    void operator()(int64_t) const {}
};

// Asks for what is read next, into L2.
class Fetching {
 public:
    Fetching(const void* memory, int64_t bytes)
        : memory_(static_cast<const char*>(memory)),
          lines_(divide_rounding_up(bytes, cache_line_bytes)) {}
    void in_turns(int64_t turns) { share_ = turns == 0 ? 0 : (lines_ << share_bits) / turns; }
    void operator()(int64_t turn) const {
        const int64_t end = smaller(lines_, ((turn + 1) * share_) >> share_bits);
        for (int64_t line = (turn * share_) >> share_bits; line < end; ++line) {
            __builtin_prefetch(memory_ + line * cache_line_bytes, 0, 2);
        }
    }

 private:
    static constexpr int share_bits = 20;
    const char* const memory_;
    const int64_t lines_;
    int64_t share_ = 0;  // lines a turn, times 2^share_bits
};

// Rows in [0, count) cut into tiles of at most `largest`, as even as can be, so that no tile is
// left with a row or two: calls function(first, rows).
template <class Function>
inline void for_each_tile(int64_t count, int64_t largest, Function&& function) {
    if (count == 0) return;
    const int64_t tiles = divide_rounding_up(count, largest);
    const int64_t least = count / tiles;
    const int64_t larger_tiles = count - least * tiles;
    int64_t first = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t rows = least + (tile < larger_tiles);
        function(first, static_cast<int>(rows));
        first += rows;
    }
}

// sums[r * vectors + v] += the product of `count` rows with a panel of `vectors` vectors over
// depths [first, last), in blocks of depths that stay in L1 while all tiles of rows pass.
//   rows:     count pointers, each to `last` contiguous elements
//   block_at: gives the packed depths [begin, begin + block)
template <class Vector, bool fetches = false, class Left, class BlockAt>
inline void multiply_in_blocks(Vector* sums, const Left* const* rows, int64_t count,
                               int64_t vectors, int64_t first, int64_t last, int64_t block_bytes,
                               BlockAt&& block_at) {
    using T = typename Vector::Element;
    constexpr int most_rows = Tile<Vector>::rows;
    const int64_t block = block_bytes / (vectors * Vector::width * static_cast<int64_t>(sizeof(T)));
    for (int64_t begin = first; begin < last; begin += block) {
        const int64_t depth = smaller(block, last - begin);
        const T* packed = block_at(begin, depth);
        for_each_tile(count, tile_rows_for<Vector>(vectors), [&](int64_t row, int tile) {
            const Left* pointers[most_rows] = {};
            for (int m = 0; m < tile; ++m) pointers[m] = rows[row + m] + begin;
            multiply_accumulate<Vector, fetches>(sums + row * vectors, tile, vectors, pointers, 1,
                                                 packed, depth);
        });
    }
}

// Bytes of a packed block that stays in L1 while all tiles of rows pass.
constexpr int64_t packed_block_bytes = 16 * 1024;

// The same with a panel that pack_panels has packed.
template <class Vector>
inline void multiply_packed(Vector* sums, const typename Vector::Element* const* rows,
                            int64_t count, const PanelLayout<Vector>& layout, int64_t panel,
                            const typename Vector::Element* packed) {
    const int64_t vectors = layout.units_of(panel) * layout.groups;
    const auto block_at = [&](int64_t begin, int64_t) {
        return packed + layout.offset(panel) + begin * vectors * Vector::width;
    };
    const auto multiply = [&](auto fetches) {
        multiply_in_blocks<Vector, fetches>(sums, rows, count, vectors, 0, layout.depth,
                                            packed_block_bytes, block_at);
    };
    constexpr int64_t least_rows_in_cache = 4;
    const bool pays_in_cache = sizeof(Vector) == cache_line_bytes && count >= least_rows_in_cache;
    if (pays_in_cache || is_beyond_caches(layout)) {
        multiply(std::true_type());
    } else {
        multiply(std::false_type());
    }
}

// The same while packing that panel, all of it.
template <class Vector>
inline void multiply_and_pack(Vector* sums, const typename Vector::Element* const* rows,
                              int64_t count, const PanelLayout<Vector>& layout, int64_t panel,
                              typename Vector::Element* packed, const Matrix& matrix) {
    const int64_t vectors = layout.units_of(panel) * layout.groups;
    with_numbers<typename Vector::Element>(matrix.numbers, [&](const auto* data) {
        multiply_in_blocks(
            sums, rows, count, vectors, 0, layout.depth, packed_block_bytes,
            [&](int64_t begin, int64_t depth) {
                auto* place = packed + layout.offset(panel) + begin * vectors * Vector::width;
                pack_block(place, layout, panel, depth, data + begin * matrix.stride_column,
                           matrix.stride_row, matrix.stride_column);
                return place;
            });
    });
}

}  // namespace seqkernels
