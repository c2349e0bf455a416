// How a kernel multiplies: by vectors of the type it computes in, on any processor. tile_product.h
// offers the same for matrix tiles.
#pragma once

#include <cstdint>

#include "product.h"

namespace seqkernels {

template <class Vector>
struct VectorProduct {
    using T = typename Vector::Element;
    using Left = T;    // what rows of the left operand hold
    using Packed = T;  // what a packed right operand holds
    static constexpr int rows = Tile<Vector>::rows;
    static constexpr int vectors = Tile<Vector>::vectors;
    // Whether a row's depths must be multiplied in one go, side by side.
    static constexpr bool takes_whole_rows = false;

    // What a thread sets up before it multiplies.
    struct Session {};

    static int64_t packed_elements(const PanelLayout<Vector>& layout) { return layout.elements(); }

    // Packs panels: fill(target, panel) leaves the columns of a panel of `layout` in the type that
    // is computed in, as pack_panel does. Of scratch nothing is needed.
    static int64_t pack_scratch_elements(const PanelLayout<Vector>&) { return 0; }
    template <class Fill>
    static void pack(Packed* packed, const PanelLayout<Vector>& layout, Range panels, T*,
                     Fill&& fill) {
        for (int64_t p = panels.begin; p < panels.end; ++p) fill(packed + layout.offset(p), p);
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

    // Rows as they are multiplied: themselves.
    static int64_t left_rows(int64_t) { return 0; }
    static int64_t left_elements(int64_t, int64_t) { return 0; }
    static const Left* const* prepare(const T* const* rows, int64_t, int64_t, Left*, const Left**) {
        return rows;
    }

    // The product with rows that were prepared.
    static void multiply_prepared(Vector* sums, int tile, int64_t vectors, const Left* const* left,
                                  const Packed* panel, int64_t depth) {
        multiply(sums, tile, vectors, left, panel, depth);
    }

    // The same of any number of rows with a whole panel.
    static void multiply_panel(Vector* sums, const Left* const* left, int64_t count,
                               const PanelLayout<Vector>& layout, int64_t p, const Packed* packed) {
        multiply_packed(sums, left, count, layout, p, packed);
    }

    static const Packed* panel(const Packed* packed, const PanelLayout<Vector>& layout,
                               int64_t panel) {
        return packed + layout.offset(panel);
    }
};

}  // namespace seqkernels
