// How a kernel multiplies bfloat16 in matrix tiles (Intel AMX), sums in float32.
//
// A tile holds 16 rows of 64 bytes. TDPBF16PS adds to 16 x 16 sums the product of 16 rows of 32
// bfloat16 with 32 x 16 of the right operand, of which each row holds a pair of depths for 16
// columns. Two tiles of rows times two of columns fill the eight tile registers: for each 32 depths
// four loads feed four products.
//
// The left operand is read where it lies, if 16 rows lie equally far apart, as windows of a
// sequence do; the last depths, and rows that do not, are copied, and what is missing is zero. The
// sums pass through memory: on them vectors go to work.
//
// Every sum is made in the same order of depths, whatever rows stand beside it; the instruction
// takes denormal numbers for zero.
//
// Cost of 32 x 32 sums and 32 depths: four products of 16 cycles, four tile loads of 8. Limit: the
// one tile unit, 1024 multiply-adds a cycle, if weights and rows come from L2 at 64 bytes a cycle.
// Not measured: verified by emulation only.
#pragma once

#include <cstdint>
#include <cstring>

#include "amx.h"
#include "product.h"
#include "vector_avx512.h"

namespace seqkernels {

// Written out, since the compilers' intrinsics do not say that a load reads memory.
template <int tile>
inline void load_tile(const void* source, int64_t stride_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
                 :
                 : "r"(source), "r"(stride_bytes), "i"(tile)
                 : "memory");
}
template <int tile>
inline void store_tile(void* target, int64_t stride_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
                 :
                 : "r"(target), "r"(stride_bytes), "i"(tile)
                 : "memory");
}
template <int sums, int left, int right>
inline void multiply_tile_pairs() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(left), "i"(right));
}

struct TileProduct {
    using Vector = Avx512Vector<float>;
    using T = float;
    using Left = Bfloat16;
    using Packed = Bfloat16;
    static constexpr int tile_rows = 16;
    static constexpr int rows = 2 * tile_rows;
    static constexpr int vectors = 2;
    static constexpr bool takes_whole_rows = true;

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

    // packed[panel][depth / 32][vector][depth % 32 / 2][lane][depth % 2], zero beyond the last
    // depth.
    static int64_t blocks(int64_t depth) { return divide_rounding_up(depth, block_depth); }
    static int64_t packed_elements(const PanelLayout<Vector>& layout) {
        return checked_product(
            {layout.vectors(), layout.groups, blocks(layout.depth), tile_numbers});
    }
    static const Packed* panel(const Packed* packed, const PanelLayout<Vector>& layout,
                               int64_t panel) {
        return packed + offset(layout, panel);
    }

    // Packs panels: fill(target, panel) leaves the columns of a panel of `layout` in float32, as
    // pack_panel does, in scratch.
    static int64_t pack_scratch_elements(const PanelLayout<Vector>& layout) {
        return checked_product({layout.units, layout.groups, Vector::width, layout.depth});
    }
    template <class Fill>
    static void pack(Packed* packed, const PanelLayout<Vector>& layout, Range panels, T* scratch,
                     Fill&& fill) {
        for (int64_t p = panels.begin; p < panels.end; ++p) {
            fill(scratch, p);
            const int64_t count = layout.units_of(p) * layout.groups;
            Packed* target = packed + offset(layout, p);
            const auto column = [&](int64_t k, int64_t v) {
                return k < layout.depth ? Vector::load(scratch + (k * count + v) * Vector::width)
                                        : Vector::broadcast(0);
            };
            for (int64_t k = 0; k < blocks(layout.depth) * block_depth; k += 2) {
                for (int64_t v = 0; v < count; ++v) {
                    store_pairs(column(k, v), column(k + 1, v),
                                target + (k / block_depth * count + v) * tile_numbers +
                                    k % block_depth * Vector::width);
                }
            }
        }
    }

    // Whole tiles, and one of what is left: rows that are missing cost as much.
    template <class Function>
    static void for_each_tile(int64_t count, Function&& function) {
        for (int64_t first = 0; first < count; first += rows) {
            function(first, static_cast<int>(smaller(rows, count - first)));
        }
    }

    // sums[m * vectors + v] += the product of up to `rows` rows with a panel of up to 4 vectors.
    // sums has room for whole tiles of 16 rows.
    static void multiply(Vector* sums, int count, int64_t vectors, const Left* const* left,
                         const Packed* panel, int64_t depth) {
        const int64_t whole = depth / block_depth;
        const int tiles = (count + tile_rows - 1) / tile_rows;
        alignas(64) Left copied[2][tile_rows * longest_copy];
        TileRows tile[2];
        for (int t = 0; t < tiles; ++t) {
            const Left* const* of_tile = left + t * tile_rows;
            const int present = count - t * tile_rows;
            tile[t] = {of_tile, present, is_even(of_tile, present)};
        }
        const char* source[2] = {};
        int64_t stride[2] = {};
        const auto copy = [&](int t, int64_t first, int64_t last) {
            const int64_t line = (last - first) * block_depth;
            copy_rows(tile[t], first * block_depth, smaller(depth, last * block_depth), line,
                      copied[t]);
            source[t] = reinterpret_cast<const char*>(copied[t]);
            stride[t] = line * int64_t{sizeof(Left)};
        };
        for (int64_t first = 0; first < whole; first += blocks_at_once) {
            const int64_t last = smaller(first + blocks_at_once, whole);
            for (int t = 0; t < tiles; ++t) {
                if (tile[t].is_even) {
                    const Left* const* of_tile = tile[t].rows;
                    source[t] = reinterpret_cast<const char*>(of_tile[0] + first * block_depth);
                    stride[t] = (of_tile[1] - of_tile[0]) * int64_t{sizeof(Left)};
                } else {
                    copy(t, first, last);
                }
            }
            multiply_blocks(sums, tiles, vectors, source, stride,
                            panel + first * vectors * tile_numbers, last - first);
        }
        if (whole == blocks(depth)) return;
        for (int t = 0; t < tiles; ++t) copy(t, whole, whole + 1);
        multiply_blocks(sums, tiles, vectors, source, stride,
                        panel + whole * vectors * tile_numbers, 1);
    }

    // Rows as they are multiplied: rounded to bfloat16, one after another in `copies`, with rows
    // and depths of zeros up to whole tiles; their addresses in `copied`, which is returned.
    //   copies: left_elements(count, depth)    copied: left_rows(count)
    static int64_t left_rows(int64_t count) {
        return divide_rounding_up(count, tile_rows) * tile_rows;
    }
    static int64_t left_elements(int64_t count, int64_t depth) {
        return checked_product({left_rows(count), blocks(depth), block_depth});
    }
    static const Left* const* prepare(const T* const* rows, int64_t count, int64_t depth,
                                      Left* copies, const Left** copied) {
        const int64_t line = blocks(depth) * block_depth;
        for (int64_t m = 0; m < left_rows(count); ++m, copies += line) {
            copied[m] = copies;
            const int64_t present = m < count ? depth : 0;
            for (int64_t k = 0; k < line; k += Vector::width) {
                const int64_t left = larger(0, present - k);
                const Vector numbers =
                    left > 0 ? load_up_to<Vector>(rows[m] + k, left) : Vector::broadcast(0);
                numbers.store_narrowed(copies + k);
            }
        }
        return copied;
    }

    // The product with rows that were prepared: of whole tiles, all in place.
    static void multiply_prepared(Vector* sums, int count, int64_t vectors, const Left* const* left,
                                  const Packed* panel, int64_t depth) {
        multiply(sums, static_cast<int>(left_rows(count)), vectors, left, panel,
                 blocks(depth) * block_depth);
    }

    // The same of any number of rows with a whole panel.
    static void multiply_panel(Vector* sums, const Left* const* left, int64_t count,
                               const PanelLayout<Vector>& layout, int64_t p, const Packed* packed) {
        const int64_t columns = layout.units_of(p) * layout.groups;
        for_each_tile(count, [&](int64_t first, int tile) {
            multiply_prepared(sums + first * columns, tile, columns, left + first,
                              panel(packed, layout, p), layout.depth);
        });
    }

 private:
    static constexpr int64_t block_depth = 32;
    static constexpr int64_t tile_numbers = 16 * block_depth;
    static constexpr int64_t blocks_at_once = 16;
    static constexpr int64_t longest_copy = blocks_at_once * block_depth;

    static int64_t offset(const PanelLayout<Vector>& layout, int64_t panel) {
        return panel * layout.units * layout.groups * blocks(layout.depth) * tile_numbers;
    }

    struct TileRows {
        const Left* const* rows = nullptr;
        int present = 0;
        bool is_even = false;
    };

    // Whether all 16 rows are there, equally far apart.
    static bool is_even(const Left* const* rows, int present) {
        if (present < tile_rows) return false;
        bool even = true;
        for (int m = 2; m < tile_rows; ++m) {
            even = even && rows[m] - rows[m - 1] == rows[1] - rows[0];
        }
        return even;
    }

    // Depths [begin, end) of a tile's rows to rows of `line` numbers; zeros beyond, and in place of
    // rows that are not there.
    static void copy_rows(const TileRows& tile, int64_t begin, int64_t end, int64_t line,
                          Left* target) {
        for (int m = 0; m < tile_rows; ++m, target += line) {
            const int64_t here = m < tile.present ? end - begin : 0;
            if (here > 0) {
                std::memcpy(target, tile.rows[m] + begin,
                            static_cast<std::size_t>(here) * sizeof(Left));
            }
            std::memset(target + here, 0, static_cast<std::size_t>(line - here) * sizeof(Left));
        }
    }

    static void multiply_blocks(Vector* sums, int tiles, int64_t vectors, const char* const* source,
                                const int64_t* stride, const Packed* packed, int64_t count) {
        for (int64_t v = 0; v < vectors; v += 2) {
            const bool two = v + 1 < vectors;
            Vector* at = sums + v;
            const Packed* columns = packed + v * tile_numbers;
            if (tiles == 2 && two) {
                multiply_in_registers<2, 2>(at, vectors, source, stride, columns, count);
            } else if (tiles == 2) {
                multiply_in_registers<2, 1>(at, vectors, source, stride, columns, count);
            } else if (two) {
                multiply_in_registers<1, 2>(at, vectors, source, stride, columns, count);
            } else {
                multiply_in_registers<1, 1>(at, vectors, source, stride, columns, count);
            }
        }
    }

    // R tiles of rows times V vectors: sums in tiles 0 to 3, rows in 4 and 5, columns in 6 and 7.
    template <int R, int V>
    [[gnu::noinline]] static void multiply_in_registers(Vector* sums, int64_t vectors,
                                                        const char* const* source,
                                                        const int64_t* stride, const Packed* packed,
                                                        int64_t count) {
        const int64_t line = vectors * int64_t{sizeof(Vector)};
        Vector* const lower = sums + tile_rows * vectors;
        load_tile<0>(sums, line);
        if constexpr (V > 1) load_tile<1>(sums + 1, line);
        if constexpr (R > 1) load_tile<2>(lower, line);
        if constexpr (R > 1 && V > 1) load_tile<3>(lower + 1, line);
        for (int64_t block = 0; block < count; ++block) {
            const int64_t offset = block * block_depth * int64_t{sizeof(Left)};
            const Packed* columns = packed + block * vectors * tile_numbers;
            load_tile<6>(columns, 64);
            load_tile<4>(source[0] + offset, stride[0]);
            multiply_tile_pairs<0, 4, 6>();
            if constexpr (V > 1) {
                load_tile<7>(columns + tile_numbers, 64);
                multiply_tile_pairs<1, 4, 7>();
            }
            if constexpr (R > 1) {
                load_tile<5>(source[1] + offset, stride[1]);
                multiply_tile_pairs<2, 5, 6>();
                if constexpr (V > 1) multiply_tile_pairs<3, 5, 7>();
            }
        }
        store_tile<0>(sums, line);
        if constexpr (V > 1) store_tile<1>(sums + 1, line);
        if constexpr (R > 1) store_tile<2>(lower, line);
        if constexpr (R > 1 && V > 1) store_tile<3>(lower + 1, line);
    }

    // Two depths of 16 columns as pairs, rounded to bfloat16.
    static void store_pairs(Vector first, Vector second, Packed* target) {
        Packed halves[2][Vector::width];
        first.store_narrowed(halves[0]);
        second.store_narrowed(halves[1]);
        for (int lane = 0; lane < Vector::width; ++lane) {
            target[2 * lane] = halves[0][lane];
            target[2 * lane + 1] = halves[1][lane];
        }
    }
};

}  // namespace seqkernels
