// The order in which a recurrence's backward keeps the gradients of gates: those of the first half
// of the hidden units, gate after gate, then those of the other half; and weights as a right
// operand of gradients in that order.
#pragma once

#include <cstdint>

#include "unpacked_product.h"

namespace seqkernels {

struct GateOrder {
    int64_t hidden;
    int64_t gates;
    int64_t first_half;  // units; all of them where there is only one half

    int64_t count() const { return gates * hidden; }
    int halves() const { return first_half < hidden ? 2 : 1; }
    Range units(int half) const {
        return half == 0 ? Range{0, first_half} : Range{half == 1 ? first_half : hidden, hidden};
    }
    // Where the gates of a half begin, and how many they are.
    int64_t place(int half) const { return gates * units(half).begin; }
    int64_t depth(int half) const { return gates * units(half).count(); }
    // Calls function(place, count, row) for places that follow each other and the rows of a weight,
    // gate * hidden + unit, whose gradients stand there.
    template <class Function>
    void for_each_gate(Function&& function) const {
        for (int half = 0; half < halves(); ++half) {
            const Range of_half = units(half);
            for (int64_t gate = 0; gate < gates; ++gate) {
                function(place(half) + gate * of_half.count(), of_half.count(),
                         gate * hidden + of_half.begin);
            }
        }
    }
    // Those rows, place after place.
    void list_rows(int64_t* rows) const {
        for_each_gate([&](int64_t at, int64_t count, int64_t row) {
            for (int64_t i = 0; i < count; ++i) rows[at + i] = row + i;
        });
    }
};

// What gradients of gates, those of some halves, are multiplied with: column i, at the depth where
// the gradient of a weight's row stands, is that row's element i.
struct GateWeights {
    Matrix weight;  // (G H, columns)
    GateOrder order;
    Range halves;

    // Calls function(depth, count, rows of the weight, transposed) for those that follow each
    // other.
    template <class Function>
    void for_each_gate(Function&& function) const {
        const int64_t begin = order.place(static_cast<int>(halves.begin));
        const int64_t end = order.place(static_cast<int>(halves.end));
        order.for_each_gate([&](int64_t place, int64_t count, int64_t row) {
            if (place < begin || place >= end) return;
            const Matrix rows{weight.numbers.from(row * weight.stride_row), weight.stride_row,
                              weight.stride_column};
            function(place - begin, count, rows.transposed());
        });
    }
};

template <class Vector>
inline void pack_panel(typename Vector::Element* target, const PanelLayout<Vector>& layout,
                       int64_t panel, const GateWeights& weights) {
    weights.for_each_gate([&](int64_t first, int64_t count, const Matrix& rows) {
        pack_panel(target, layout, panel, count, rows, [=](int64_t k) { return first + k; });
    });
}

// As that of a matrix.
template <class Vector, class Left>
inline void multiply_unpacked(Vector* sums, const Left* const* rows, int64_t count,
                              const PanelLayout<Vector>& layout, int64_t panel,
                              const GateWeights& weights) {
    constexpr int64_t most_together = 64;
    const int64_t vectors = layout.units_of(panel) * layout.groups;
    for (int64_t begin = 0; begin < count; begin += most_together) {
        const int64_t together = smaller(most_together, count - begin);
        weights.for_each_gate([&](int64_t first, int64_t depth, const Matrix& matrix) {
            const Left* from_gate[most_together];
            for (int64_t m = 0; m < together; ++m) from_gate[m] = rows[begin + m] + first;
            const PanelLayout<Vector> of_gate{layout.columns, depth, layout.units, layout.groups};
            multiply_unpacked(sums + begin * vectors, from_gate, together, of_gate, panel, matrix);
        });
    }
}

}  // namespace seqkernels
