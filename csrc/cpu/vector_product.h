// How a kernel multiplies: by vectors of the type it computes in, on any processor. tile_product.h
// offers the same for tiles.
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

template <class VectorType>
struct VectorProduct {
    using Vector = VectorType;
    using T = typename Vector::Element;
    using Left = T;    // what rows of the left operand hold
    using Packed = T;  // what a packed right operand holds
    static constexpr int rows = Tile<Vector>::rows;
    static constexpr int vectors = Tile<Vector>::vectors;
    // Arrays that a row of the left operand is kept in.
    static constexpr int left_planes = 1;
    static constexpr bool in_tiles = false;
    static constexpr int64_t depths_at_once = 1;
    static constexpr bool whole_tiles = false;
    static constexpr bool rows_stay(int64_t) { return false; }
    // A core's own cache: most have as much or more.
    static constexpr int64_t cache_bytes = 1 << 20;
    // Whether products are added to what the sums hold, or take its place.
    static constexpr bool accumulates = true;
    // Whether there are numbers that it cannot multiply.
    static constexpr bool is_partial = false;

    // What a thread sets up before it multiplies.
    struct Session {};

    // What is to be known of numbers before they are multiplied: nothing.
    struct Magnitude {
        static constexpr bool is_plain() { return true; }
    };

    static int64_t packed_elements(const PanelLayout<Vector>& layout) { return layout.elements(); }

    // Packs panels: fill(target, panel) leaves the columns of a panel of `layout` in the type that
    // is computed in, as pack_panel does. Of scratch nothing is needed. Returns whether all of them
    // can be multiplied.
    static int64_t pack_scratch_elements(const PanelLayout<Vector>&) { return 0; }
    template <class Fill>
    static bool pack(Packed* packed, const PanelLayout<Vector>& layout, Range panels, T*,
                     Fill&& fill) {
        for (int64_t p = panels.begin; p < panels.end; ++p) fill(packed + layout.offset(p), p);
        return true;
    }

    static bool pack_matrix(Packed* packed, const PanelLayout<Vector>& layout, Range panels, T*,
                            const Matrix& matrix) {
        pack_panels(packed, layout, panels, matrix);
        return true;
    }

    template <class Function>
    static void for_each_tile(int64_t count, Function&& function) {
        seqkernels::for_each_tile(count, rows, function);
    }

    // sums[m * vectors + v] += the product of a tile of rows with the first `depth` depths of a
    // panel of `vectors` vectors.
    static void multiply(Vector* sums, int tile, int64_t vectors, const Left* const* left,
                         const Packed* panel, int64_t depth) {
        multiply_accumulate(sums, tile, vectors, left, 1, panel, depth);
    }

    // Stores numbers that lie side by side as a left operand's.
    template <class Number>
    static void store_left(const Number* numbers, int64_t count, int64_t, Left* target, int64_t,
                           Magnitude&) {
        for (int64_t i = 0; i < count; i += Vector::width) {
            store_up_to(load_up_to<Vector>(numbers + i, count - i), target + i, count - i);
        }
    }

    // Whether numbers are multiplied as they are stored.
    template <class Number>
    static constexpr bool multiplies_as_stored = std::is_same_v<Number, T>;

    // Rows of a left operand as they are multiplied: themselves.
    template <class Number>
    struct Rows {
        const Number* const* given;

        Rows from(int64_t first) const { return {given + first}; }
    };
    static int64_t left_elements(int64_t, int64_t) { return 0; }
    static Rows<T> prepare(const T* const* rows, Range, int64_t, Left*, T*) { return {rows}; }

    // Blocks of rows whose sums are kept while a panel passes: tiles.
    static constexpr int panel_rows = rows;
    template <class Function>
    static void for_each_block(int64_t count, Function&& function) {
        for_each_tile(count, function);
    }

    // sums[m * vectors + v] += the product of a block of rows with panel p of a layout of a matrix,
    // or of what else multiply_unpacked takes for one.
    // meanwhile: see product.h.
    template <class Operand, class Meanwhile = Nothing>
    static void multiply_block(Vector* sums, const Rows<T>& rows, int tile,
                               const PanelLayout<Vector>& layout, int64_t p, const Packed* packed,
                               const Operand&, const Meanwhile& = {}) {
        multiply(sums, tile, layout.units_of(p) * layout.groups, rows.given,
                 packed + layout.offset(p), layout.depth);
    }

    // Any number of rows: sums[m * vectors + v] = start[m * line + v] + their product.
    // meanwhile: see product.h.
    template <class Meanwhile = Nothing>
    static void multiply_from(Vector* sums, const Vector* start, int64_t line, const Rows<T>& rows,
                              int64_t count, const PanelLayout<Vector>& layout, int64_t p,
                              const Packed* packed, const Matrix&, const Meanwhile& = {}) {
        begin_sums(sums, start, line, count, layout.units_of(p) * layout.groups);
        multiply_packed(sums, rows.given, count, layout, p, packed);
    }

    static Fetching fetching(const Packed* packed, const PanelLayout<Vector>& layout, int64_t p) {
        const int64_t line = layout.units_of(p) * layout.groups * Vector::width;
        return {panel(packed, layout, p), layout.depth * line * int64_t{sizeof(T)}};
    }
    static const Packed* panel(const Packed* packed, const PanelLayout<Vector>& layout,
                               int64_t panel) {
        return packed + layout.offset(panel);
    }
};

}  // namespace seqkernels
