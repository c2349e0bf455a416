// weight_gradient.h in matrix tiles:
//   target_p[m][i] = sum over rows r of left(r)[m] * right_p(r)[i]
//
// Blocks of rows are cut into planes (tile_product.h): the right operands' into panels, shared by
// all threads; the left one's transposed, each thread its own rows of the gradient, so many at a
// time that they stay in L2 while all panels pass. Where the largest number of a panel, or of 32
// rows of the gradient, is very small, it is scaled by a power of two; large ones, and those that
// are not finite, are multiplied by vectors.
//
// Scratch, owned by the call: planes of block_rows (right_count_0 + right_count_1) numbers, and for
// each thread of block_rows left_together.
// Cost: 2 rows left_count right_count FLOPs. Limit: as tile_product.h; for each block of rows the
// gradients are read and written once. Tried without gain: blocks of 512 and 1024 rows, 128 and 512
// rows of the gradient at a time (within 4 %, an LSTM of 256 and 512 units, 64 samples).
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "tile_product.h"

namespace seqkernels {

template <int planes>
class TileWeightGradient {
    using Product = TileProduct<planes>;
    using Vector = typename Product::Vector;
    using T = typename Product::T;
    using Packed = typename Product::Packed;
    using Left = typename Product::Left;
    static constexpr int64_t block_rows = 256;
    static constexpr int64_t left_together = 256;

 public:
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
              sums_(std::is_same_v<Number, T> || rows <= block_rows
                        ? 0
                        : checked_product({left_count, count_})) {}

     private:
        friend class TileWeightGradient;
        PanelLayout<Vector> layout(int64_t depth) const {
            return {count_, depth, Product::vectors, 1};
        }

        // Where the sums over several blocks lie.
        T* sums() const {
            if constexpr (std::is_same_v<Number, T>) {
                return target_;
            } else {
                return sums_.data();
            }
        }

        const int64_t count_;
        Number* const target_;
        const Scratch<Packed> packed_;
        // Of each panel, what its products are to be multiplied with: zero where they are not made.
        const Scratch<T> inverses_;
        const Scratch<T> sums_;
    };

    TileWeightGradient(int64_t left_count, int threads)
        : left_count_(left_count),
          left_elements_(Product::left_elements(left_together, block_rows)),
          left_(checked_product({left_count == 0 ? 0 : left_elements_, threads})) {}

    // Called by every thread of a region. left(r) and right_p(r) give rows of contiguous elements.
    template <class LeftRow, class Number, class Right0, class Right1>
    void run(int64_t rows, LeftRow&& left, const Operand<Number>& operand0, Right0&& right0,
             const Operand<Number>& operand1, Right1&& right1, int thread, int threads,
             Barrier& barrier) const {
        const Range mine = rows_of(thread, threads);
        // Of no rows there is one block, of depth zero.
        for (int64_t begin = 0; begin == 0 || begin < rows; begin += block_rows) {
            const Block block{smaller(block_rows, rows - begin), begin == 0,
                              begin + block_rows >= rows};
            const auto left_row = [&](int64_t k) { return left(begin + k); };
            const auto row0 = [&](int64_t k) { return right0(begin + k); };
            const auto row1 = [&](int64_t k) { return right1(begin + k); };
            pack_right(operand0, block.depth, row0, thread, threads);
            pack_right(operand1, block.depth, row1, thread, threads);
            barrier.wait(threads);
            for (int64_t first = mine.begin; first < mine.end; first += left_together) {
                const Range part{first, smaller(mine.end, first + left_together)};
                Left* packed = left_.data() + thread * left_elements_;
                T inverses[left_together / Product::rows];
                pack_left(packed, part, block.depth, left_row, inverses);
                add_product(packed, inverses, part, operand0, block, left_row, row0);
                add_product(packed, inverses, part, operand1, block, left_row, row1);
            }
            barrier.wait(threads);
        }
    }

 private:
    // Rows that are multiplied together.
    struct Block {
        int64_t depth;
        bool is_first;
        bool is_last;
    };

    Range rows_of(int thread, int threads) const {
        // Whole tiles, so that what shares a scale does not depend on the number of threads.
        return part_of(left_count_, Product::rows, thread, threads);
    }

    // 1 / scale; zero for zero.
    static T inverse_of(T scale) { return scale == T(0) ? T(0) : T(1) / scale; }

    // A thread's panels of a block of a right operand, whose rows lie as panels want them.
    template <class Number, class Row>
    static void pack_right(const Operand<Number>& operand, int64_t depth, Row&& row, int thread,
                           int threads) {
        const PanelLayout<Vector> layout = operand.layout(depth);
        const Range panels = part_of(layout.panels(), 1, thread, threads);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const auto column = [&](int64_t k, int64_t v) {
                const int64_t i = layout.first_column(panel) + v * Vector::width;
                return k < depth ? load_up_to<Vector>(row(k) + i, operand.count_ - i)
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
    template <class Row>
    static void pack_left(Left* packed, Range part, int64_t depth, Row&& row, T* inverses) {
        Product::for_each_tile(part.end - part.begin, [&](int64_t first, int tile) {
            inverses[first / Product::rows] =
                pack_tile(packed, part.begin, first, tile, depth, row);
        });
    }

    template <class Row>
    static T pack_tile(Left* packed, int64_t begin, int64_t first, int64_t count, int64_t depth,
                       Row&& row) {
        T scale = 1;
        if (Product::cuts) {
            TileMagnitude magnitude;
            for (int64_t k = 0; k < depth; ++k) {
                const T* source = row(k) + begin + first;
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
                    return load_up_to<Vector>(row(k + i) + begin + first + m, count - m) * factor;
                };
                Product::store_columns(column, packed, depth, first + m, k);
            }
        }
        return inverse_of(scale);
    }

    template <class Number, class LeftRow, class RightRow>
    static void add_product(const Left* packed, const T* inverses, Range part,
                            const Operand<Number>& operand, const Block& block, LeftRow&& left,
                            RightRow&& right) {
        const PanelLayout<Vector> layout = operand.layout(block.depth);
        for (int64_t panel = 0; panel < layout.panels(); ++panel) {
            const T of_panel = operand.inverses_.data()[panel];
            const int64_t units = layout.units_of(panel);
            Product::for_each_tile(part.end - part.begin, [&](int64_t first, int tile) {
                Vector sums[Product::rows * Product::vectors];
                const T of_tile = inverses[first / Product::rows];
                const bool is_made = of_tile != T(0) && of_panel != T(0);
                if (!is_made) {
                    by_vectors(sums, part.begin + first, tile, layout, panel, left, right);
                } else {
                    Product::multiply_packed_rows(sums, packed, first, tile, layout, panel,
                                                  operand.packed_.data());
                }
                // One after the other, whose product might underflow.
                const Vector factor = Vector::broadcast(is_made ? of_tile : T(1));
                const Vector other = Vector::broadcast(is_made ? of_panel : T(1));
                for (int m = 0; m < tile; ++m) {
                    const int64_t place = (part.begin + first + m) * operand.count_;
                    for (int64_t v = 0; v < units; ++v) {
                        const int64_t i = layout.first_column(panel) + v * Vector::width;
                        const int64_t count = operand.count_ - i;
                        T* before = operand.sums() + place + i;
                        const Vector sum =
                            multiply_add(sums[m * units + v] * other, factor,
                                         block.is_first ? Vector::broadcast(0)
                                                        : load_up_to<Vector>(before, count));
                        if (block.is_last) {
                            store_up_to(sum, operand.target_ + place + i, count);
                        } else {
                            store_up_to(sum, before, count);
                        }
                    }
                }
            });
        }
    }

    template <class LeftRow, class RightRow>
    static void by_vectors(Vector* sums, int64_t first, int tile, const PanelLayout<Vector>& layout,
                           int64_t panel, LeftRow&& left, RightRow&& right) {
        const int64_t units = layout.units_of(panel);
        for (int64_t i = 0; i < tile * units; ++i) sums[i] = Vector::broadcast(0);
        for (int64_t k = 0; k < layout.depth; ++k) {
            const T* of_left = left(k) + first;
            const auto* of_right = right(k);
            for (int64_t v = 0; v < units; ++v) {
                const int64_t i = layout.first_column(panel) + v * Vector::width;
                const Vector columns = load_up_to<Vector>(of_right + i, layout.columns - i);
                for (int m = 0; m < tile; ++m) {
                    Vector& sum = sums[m * units + v];
                    sum = multiply_add(Vector::broadcast(of_left[m]), columns, sum);
                }
            }
        }
    }

    const int64_t left_count_;
    const int64_t left_elements_;
    const Scratch<Left> left_;
};

}  // namespace seqkernels
