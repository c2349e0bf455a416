// The right operand of a product in tiles (tile_product.h): panels of bfloat16 planes, and how they
// are packed.
//
// A panel: a line of which the first number tells whether it is plain, then
// [vector / 2][depth / 32][vector % 2][plane][depth % 32 / 2][lane][depth % 2], zero beyond the
// last depth. So what passes at a time, two vectors, lies without gaps.
//
// Cost: each number read once, and 2 bytes a plane written. Limit: the bandwidth of where the
// matrix lies. Weights of bfloat16 whose pairs of depths already lie side by side are transposed as
// words of 32 bits (an LSTM of 1024 units, one sequence of 25 steps, AMD family 26, two
// threads: 2.7 ms by way of float32, 3.0 so, and 2.5 with what is packed 8 blocks later fetched).
#pragma once

#include <cstdint>

#include "amx.h"
#include "product.h"
#include "tile_magnitude.h"
#include "tile_planes.h"
#include "vector_avx512.h"

namespace seqkernels {

template <int planes>
struct TilePanels {
    using Vector = Avx512Vector<float>;
    using T = float;
    using Packed = Bfloat16;
    static constexpr int tile_rows = TileConfiguration::rows;
    static constexpr int64_t block_depth = TileConfiguration::depth;
    static constexpr int64_t tile_numbers = tile_rows * block_depth;
    static constexpr bool cuts = planes > 1;
    // Whether numbers are multiplied as they are stored.
    template <class Number>
    static constexpr bool multiplies_as_stored = planes == 1 && std::is_same_v<Number, Packed>;

    static int64_t blocks(int64_t depth) { return divide_rounding_up(depth, block_depth); }
    static int64_t packed_elements(const PanelLayout<Vector>& layout) {
        return checked_product({layout.panels(), panel_elements(layout)});
    }
    // To fetch a panel meanwhile.
    static Fetching fetching(const Packed* packed, const PanelLayout<Vector>& layout, int64_t p) {
        return {panel(packed, layout, p), panel_elements(layout) * int64_t{sizeof(Packed)}};
    }
    static const Packed* panel(const Packed* packed, const PanelLayout<Vector>& layout,
                               int64_t panel) {
        return packed + panel * panel_elements(layout);
    }

    // Packs panels: fill(target, panel) leaves the columns of a panel of `layout` in float32, as
    // pack_panel does, in scratch. Returns whether all are plain.
    static int64_t pack_scratch_elements(const PanelLayout<Vector>& layout) {
        return checked_product({layout.units, layout.groups, Vector::width, layout.depth});
    }
    template <class Fill>
    static bool pack(Packed* packed, const PanelLayout<Vector>& layout, Range panels, T* scratch,
                     Fill&& fill) {
        bool all_plain = true;
        for (int64_t p = panels.begin; p < panels.end; ++p) {
            fill(scratch, p);
            const int64_t count = layout.units_of(p) * layout.groups;
            const bool is_plain = pack_panel(packed, layout, p, [&](int64_t k, int64_t v) {
                return k < layout.depth ? Vector::load(scratch + (k * count + v) * Vector::width)
                                        : Vector::broadcast(0);
            });
            all_plain = all_plain && is_plain;
        }
        return all_plain;
    }

    // The same of a matrix.
    static bool pack_matrix(Packed* packed, const PanelLayout<Vector>& layout, Range panels,
                            T* scratch, const Matrix& matrix) {
        if constexpr (multiplies_as_stored<Bfloat16>) {
            if (matrix.numbers.is<Bfloat16>() && matrix.stride_column == 1) {
                bool all_plain = true;
                for (int64_t p = panels.begin; p < panels.end; ++p) {
                    if (!pack_stored_rows(packed, layout, p, matrix)) all_plain = false;
                }
                return all_plain;
            }
        }
        return pack(packed, layout, panels, scratch, [&](T* target, int64_t panel) {
            seqkernels::pack_panel(target, layout, panel, layout.depth, matrix);
        });
    }

    // The same of one panel: column(k, v) gives vector v of it at depth k, zero beyond the last.
    template <class Column>
    static bool pack_panel(Packed* packed, const PanelLayout<Vector>& layout, int64_t p,
                           Column&& column) {
        const int64_t count = layout.units_of(p) * layout.groups;
        Packed* const target = packed + p * panel_elements(layout);
        TileMagnitude magnitude;
        for (int64_t block = 0; block < blocks(layout.depth); ++block) {
            for (int64_t v = 0; v < count; ++v) {
                Packed* line = vector_at(target, layout, p, v, block);
                for (int64_t k = block * block_depth; k < (block + 1) * block_depth; k += 2) {
                    const Vector first = column(k, v), second = column(k + 1, v);
                    magnitude.take(first);
                    magnitude.take(second);
                    __m512i cut[planes];
                    cut_into_pairs(first.value, second.value, cut);
                    for (int q = 0; q < planes; ++q) {
                        _mm512_storeu_si512(line + q * tile_numbers, cut[q]);
                    }
                    line += 2 * Vector::width;
                }
            }
        }
        return mark(target, magnitude);
    }

    // For who packs otherwise: where the 16 lines of a block of vector v go, and whether all of a
    // panel are plain.
    static Packed* lines_of(Packed* packed, const PanelLayout<Vector>& layout, int64_t p, int64_t v,
                            int64_t block) {
        return vector_at(packed + p * panel_elements(layout), layout, p, v, block);
    }
    static void mark(Packed* packed, const PanelLayout<Vector>& layout, int64_t p, bool is_plain) {
        packed[p * panel_elements(layout)].bits = is_plain;
    }

    // Where in a panel the depths from a block on of vector v lie, or of the pair that it is in.
    // pair: the vectors of it, two or one
    template <class Panel>
    static Panel* columns_at(Panel* panel, int64_t v, int64_t pair, int64_t depth, int64_t block) {
        return panel + header + (v / 2 * 2 * blocks(depth) + block * pair) * planes * tile_numbers;
    }

 private:
    static constexpr int64_t header = 32;

    static int64_t panel_elements(const PanelLayout<Vector>& layout) {
        return header + checked_product({layout.units, layout.groups, planes, blocks(layout.depth),
                                         tile_numbers});
    }

    // Where the depths from a block on of vector v of panel p lie.
    static Packed* vector_at(Packed* panel, const PanelLayout<Vector>& layout, int64_t p, int64_t v,
                             int64_t block) {
        const int64_t pair = smaller(2, layout.units_of(p) * layout.groups - v / 2 * 2);
        return columns_at(panel, v, pair, layout.depth, block) + v % 2 * planes * tile_numbers;
    }

    // Notes whether a panel is plain.
    static bool mark(Packed* panel, const TileMagnitude& magnitude) {
        const uint32_t largest = magnitude.bits();
        const bool is_plain =
            cuts ? TileMagnitude::is_plain(largest) : TileMagnitude::is_finite(largest);
        panel[0].bits = is_plain;
        return is_plain;
    }

    // Rows of bfloat16 as a panel: pairs of depths already lie side by side.
    static bool pack_stored_rows(Packed* packed, const PanelLayout<Vector>& layout, int64_t p,
                                 const Matrix& matrix) {
        const int64_t count = layout.units_of(p) * layout.groups;
        Packed* const target = packed + p * panel_elements(layout);
        TileMagnitude magnitude;
        for (int64_t v = 0; v < count; ++v) {
            const int64_t column = layout.first_column(p) + v / layout.groups * Vector::width;
            const int64_t present = smaller(Vector::width, layout.columns - column);
            const auto* rows = static_cast<const Bfloat16*>(matrix.numbers.data) +
                               (v % layout.groups * layout.columns + column) * matrix.stride_row;
            for (int64_t block = 0; block < blocks(layout.depth); ++block) {
                const __mmask32 there = first_depths(layout.depth - block * block_depth);
                __m512i lines[tile_rows];
                for (int64_t i = 0; i < tile_rows; ++i) {
                    const Bfloat16* const row =
                        rows + smaller(i, present - 1) * matrix.stride_row + block * block_depth;
                    __builtin_prefetch(row + 8 * block_depth, 0, 2);
                    lines[i] = _mm512_maskz_loadu_epi16(i < present ? there : 0, row);
                    magnitude.take(lines[i]);
                }
                transpose(lines);
                Packed* line = vector_at(target, layout, p, v, block);
                for (int64_t i = 0; i < tile_rows; ++i, line += block_depth) {
                    _mm512_storeu_si512(line, lines[i]);
                }
            }
        }
        return mark(target, magnitude);
    }
};

}  // namespace seqkernels
