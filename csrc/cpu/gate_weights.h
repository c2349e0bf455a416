// Recurrent weights of some hidden units' gates as a right operand of their gradients: what these
// add to the gradients of all units' states.
#pragma once

#include <cstdint>

#include "unpacked_product.h"

namespace seqkernels {

// Column i at depth g * count + k is the weight of gate g of unit first + k from state i.
struct GateWeights {
    Matrix weight;  // (G H, H)
    int64_t hidden;
    int64_t gates;
    int64_t first;
    int64_t count;

    int64_t depth() const { return gates * count; }
    // The depths of one gate, a row for each state.
    Matrix of(int64_t gate) const {
        const int64_t row = gate * hidden + first;
        return Matrix{weight.numbers.from(row * weight.stride_row), weight.stride_row,
                      weight.stride_column}
            .transposed();
    }
};

template <class Vector>
inline void pack_panel(typename Vector::Element* target, const PanelLayout<Vector>& layout,
                       int64_t panel, const GateWeights& weights) {
    for (int64_t gate = 0; gate < weights.gates; ++gate) {
        pack_panel(target, layout, panel, weights.count, weights.of(gate),
                   [&](int64_t k) { return gate * weights.count + k; });
    }
}

// As that of a matrix.
template <class Vector, class Left>
inline void multiply_unpacked(Vector* sums, const Left* const* rows, int64_t count,
                              const PanelLayout<Vector>& layout, int64_t panel,
                              const GateWeights& weights) {
    const PanelLayout<Vector> of_gate{layout.columns, weights.count, layout.units, layout.groups};
    constexpr int64_t at_once = 64;
    const Left* of_rows[at_once];
    for (int64_t first = 0; first < count; first += at_once) {
        const int64_t together = smaller(at_once, count - first);
        for (int64_t gate = 0; gate < weights.gates; ++gate) {
            for (int64_t m = 0; m < together; ++m) {
                of_rows[m] = rows[first + m] + gate * weights.count;
            }
            multiply_unpacked(sums + first * layout.units_of(panel) * layout.groups, of_rows,
                              together, of_gate, panel, weights.of(gate));
        }
    }
}

}  // namespace seqkernels
