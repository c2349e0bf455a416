// weight_gradient.h in tiles:
//   target_p[row(m)][i] = sum over rows r of left[r][m] * right_p[r][i],  left_sums[m] = sum of
//   left[r][m]
//
// Blocks of rows are cut into planes (tile_product.h): the right operands' into panels, shared by
// all threads; the left one's transposed, each thread its own rows of the gradient, so many at a
// time that they stay in L2 while all panels pass. Sums of several blocks are kept panel after
// panel, where tiles begin with them. Where the largest number of a panel, or of 32 rows of the
// gradient, is very small, it is scaled by a power of two; large ones, and those that are not
// finite, are multiplied by vectors.
//
// Scratch, owned by the call: planes of block_rows (right_count_0 + right_count_1) numbers; for
// each thread of block_rows left_together, and the sums of a panel; left_count integers; of more
// than one block, the sums of both gradients. Cost: 2 rows left_count right_count FLOPs. Limit: as
// tile_product.h; for each block of rows the sums are read and written once, the right operand read
// once for left_together rows of the gradient.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "tile_product.h"
#include "weight_gradient.h"

namespace seqkernels {

template <class Unit, int planes>
class TileWeightGradient {
    using Product = TileProduct<Unit, planes>;
    using Vector = typename Product::Vector;
    using T = typename Product::T;
    using Packed = typename Product::Packed;
    using Left = typename Product::Left;
    static constexpr int64_t left_together = planes == 1 ? 512 : 256;

 public:
    // The most rows of a block, and as many as there are in all but the last.
    static constexpr int64_t block_rows = planes == 1 ? 1024 : 512;

    // One right operand and where its gradient goes: (left_count, count) contiguous, written whole.
    template <class Number>
    class Operand {
     public:
        // Without a target nothing is computed.
        Operand(int64_t count, Number* target, int64_t left_count, int64_t rows)
            : count_(target == nullptr ? 0 : count),
              target_(target),
              packed_(Product::packed_elements(layout(block_rows))),
              inverses_(layout(block_rows).panels()),
              sums_(rows <= block_rows ? 0
                                       : checked_product({Product::left_rows(left_count),
                                                          layout(block_rows).vectors()})) {}

     private:
        friend class TileWeightGradient;
        PanelLayout<Vector> layout(int64_t depth) const {
            return {count_, depth, Product::vectors, 1};
        }

        const int64_t count_;
        Number* const target_;
        const Scratch<Packed> packed_;
        // Of each panel, what its products are to be multiplied with: zero where they are not made.
        const Scratch<T> inverses_;
        const Scratch<Vector> sums_;
    };

    TileWeightGradient(const GateOrder& order, bool has_operands, int threads)
        : order_(order),
          has_operands_(has_operands),
          left_elements_(has_operands ? Product::left_elements(left_together, block_rows) : 0),
          panel_vectors_(has_operands ? left_together * Product::vectors : 0),
          rows_(has_operands ? order.count() : 0),
          left_(checked_product({left_elements_, threads})),
          panel_sums_(checked_product({panel_vectors_, threads})) {
        if (has_operands) order.list_rows(rows_.data());
    }

    // As WeightGradient's.
    template <class LeftNumber, class Number>
    void add(const GradientBlock& block, const LeftNumber* const* left, T* left_sums,
             const Operand<Number>& operand0, const Number* const* right0,
             const Operand<Number>& operand1, const Number* const* right1, int thread, int threads,
             Barrier& barrier) const {
        if (has_operands_) {
            pack_right(operand0, block.depth, right0, thread, threads);
            pack_right(operand1, block.depth, right1, thread, threads);
            barrier.wait(threads);
        }
        // Whole tiles, so that what shares a scale does not depend on the number of threads.
        const Range mine = part_of(order_.count(), Product::rows, thread, threads);
        for (int64_t first = mine.begin; first < mine.end; first += left_together) {
            const Range part{first, smaller(mine.end, first + left_together)};
            if (left_sums != nullptr) {
                add_rows<Vector>(left_sums, part, left, block.depth, block.is_first);
            }
            if (!has_operands_) continue;
            Left* packed = left_.data() + thread * left_elements_;
            T inverses[left_together / Product::rows];
            pack_left(packed, part, block.depth, left, inverses);
            Vector* sums = panel_sums_.data() + thread * panel_vectors_;
            add_product(packed, inverses, part, operand0, block, left, right0, sums);
            add_product(packed, inverses, part, operand1, block, left, right1, sums);
        }
    }

 private:
    // 1 / scale; zero for zero.
    static T inverse_of(T scale) { return scale == T(0) ? T(0) : T(1) / scale; }

    // A thread's panels of a block of a right operand, whose rows lie as panels want them.
    template <class Number>
    static void pack_right(const Operand<Number>& operand, int64_t depth, const Number* const* rows,
                           int thread, int threads) {
        const PanelLayout<Vector> layout = operand.layout(depth);
        const Range panels = part_of(layout.panels(), 1, thread, threads);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const auto column = [&](int64_t k, int64_t v) {
                const int64_t i = layout.first_column(panel) + v * Vector::width;
                return k < depth ? load_up_to<Vector>(rows[k] + i, operand.count_ - i)
                                 : Vector::broadcast(0);
            };
            T scale = 1;
            if (Product::cuts) {
                TileMagnitude magnitude;
                for (int64_t k = 0; k < depth; ++k) {
                    for (int64_t v = 0; v < layout.units_of(panel); ++v) {
                        magnitude.take(column(k, v));
                    }
                }
                scale = magnitude.scale();
            }
            const Vector factor = Vector::broadcast(scale);
            Product::pack_panel(operand.packed_.data(), layout, panel, [&](int64_t k, int64_t v) {
                return scale == T(1) ? column(k, v) : column(k, v) * factor;
            });
            operand.inverses_.data()[panel] = inverse_of(scale);
        }
    }

    // Columns `part` of a block of the left operand as rows of tiles. inverses: for each tile what
    // its products are to be multiplied with, zero where they must not be made.
    template <class LeftNumber>
    static void pack_left(Left* packed, Range part, int64_t depth, const LeftNumber* const* rows,
                          T* inverses) {
        Product::for_each_tile(part.end - part.begin, [&](int64_t first, int tile) {
            inverses[first / Product::rows] =
                pack_tile(packed, part.begin, first, tile, depth, rows);
        });
    }

    template <class LeftNumber>
    static T pack_tile(Left* packed, int64_t begin, int64_t first, int64_t count, int64_t depth,
                       const LeftNumber* const* rows) {
        T scale = 1;
        if (Product::cuts) {
            TileMagnitude magnitude;
            for (int64_t k = 0; k < depth; ++k) {
                const LeftNumber* source = rows[k] + begin + first;
                for (int64_t m = 0; m < count; m += Vector::width) {
                    magnitude.take(load_up_to<Vector>(source + m, count - m));
                }
            }
            scale = magnitude.scale();
        }
        const Vector factor = Vector::broadcast(scale);
        constexpr int64_t block = Product::block_depth;
        for (int64_t k = 0; k < depth; k += block) {
            for (int64_t m = 0; m < count; m += Vector::width) {
                const auto column = [&](int64_t i) {
                    if (k + i >= depth) return Vector::broadcast(0);
                    return load_up_to<Vector>(rows[k + i] + begin + first + m, count - m) * factor;
                };
                Product::store_columns(column, packed, depth, first + m, k);
            }
        }
        return inverse_of(scale);
    }

    template <class LeftNumber, class Number>
    void add_product(const Left* packed, const T* inverses, Range part,
                     const Operand<Number>& operand, const GradientBlock& block,
                     const LeftNumber* const* left, const Number* const* right,
                     Vector* panel_sums) const {
        const PanelLayout<Vector> layout = operand.layout(block.depth);
        const int64_t rows = part.end - part.begin;
        bool rows_are_plain = true;
        Product::for_each_tile(rows, [&](int64_t first, int) {
            rows_are_plain = rows_are_plain && inverses[first / Product::rows] == T(1);
        });
        for (int64_t panel = 0; panel < layout.panels(); ++panel) {
            const T of_panel = operand.inverses_.data()[panel];
            const int64_t units = layout.units_of(panel);
            Vector* const of_blocks = block.is_first && block.is_last
                                          ? nullptr
                                          : operand.sums_.data() + part.begin * layout.vectors() +
                                                panel * layout.units * Product::left_rows(rows);
            Vector* const sums = block.is_last ? panel_sums : of_blocks;
            const Vector* const start = block.is_first ? nullptr : of_blocks;
            const auto multiply = [&](int64_t first, int64_t count) {
                Product::multiply_packed_rows(
                    sums + first * units, start == nullptr ? nullptr : start + first * units,
                    packed, first, count, layout, panel, operand.packed_.data());
            };
            if (rows_are_plain && of_panel == T(1)) {
                multiply(0, rows);
            } else {
                Product::for_each_tile(rows, [&](int64_t first, int tile) {
                    const T of_tile = inverses[first / Product::rows];
                    if (of_tile == T(1) && of_panel == T(1)) return multiply(first, tile);
                    Vector products[Product::rows * Product::vectors];
                    const bool is_made = of_tile != T(0) && of_panel != T(0);
                    if (is_made) {
                        Product::multiply_packed_rows(products, nullptr, packed, first, tile,
                                                      layout, panel, operand.packed_.data());
                    } else {
                        by_vectors(products, part.begin + first, tile, layout, panel, left, right);
                    }
                    // One after the other, whose product might underflow.
                    const Vector factor = Vector::broadcast(is_made ? of_tile : T(1));
                    const Vector other = Vector::broadcast(is_made ? of_panel : T(1));
                    for (int64_t i = 0; i < tile * units; ++i) {
                        const int64_t at = first * units + i;
                        sums[at] =
                            multiply_add(products[i] * other, factor,
                                         start == nullptr ? Vector::broadcast(0) : start[at]);
                    }
                });
            }
            if (!block.is_last) continue;
            for (int64_t m = 0; m < rows; ++m) {
                Number* const row = operand.target_ + rows_.data()[part.begin + m] * operand.count_;
                for (int64_t v = 0; v < units; ++v) {
                    const int64_t i = layout.first_column(panel) + v * Vector::width;
                    store_up_to(sums[m * units + v], row + i, operand.count_ - i);
                }
            }
        }
    }

    template <class LeftNumber, class Number>
    static void by_vectors(Vector* sums, int64_t first, int tile, const PanelLayout<Vector>& layout,
                           int64_t panel, const LeftNumber* const* left,
                           const Number* const* right) {
        const int64_t units = layout.units_of(panel);
        for (int64_t i = 0; i < tile * units; ++i) sums[i] = Vector::broadcast(0);
        for (int64_t k = 0; k < layout.depth; ++k) {
            for (int64_t v = 0; v < units; ++v) {
                const int64_t i = layout.first_column(panel) + v * Vector::width;
                const Vector columns = load_up_to<Vector>(right[k] + i, layout.columns - i);
                for (int m = 0; m < tile; ++m) {
                    Vector& sum = sums[m * units + v];
                    const T of_left = widen(left[k][first + m]);
                    sum = multiply_add(Vector::broadcast(of_left), columns, sum);
                }
            }
        }
    }

    const GateOrder order_;
    const bool has_operands_;
    const int64_t left_elements_;
    const int64_t panel_vectors_;
    const Scratch<int64_t> rows_;  // of a gradient, in that order
    const Scratch<Left> left_;
    const Scratch<Vector> panel_sums_;
};

}  // namespace seqkernels
