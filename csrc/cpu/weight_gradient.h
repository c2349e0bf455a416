// Weight gradients of a recurrence, over all steps at once:
//   weight_gradient[m][i] = sum over rows r of left(r)[m] * right(r)[i]
// for m in [0, left_count) and i in [0, right_count).
//
// Both operands lie with the summed index outermost, so blocks of rows are packed: the right operand
// into panels, shared by all threads; the left one, each thread its own rows of the gradient, into
// tiles of interleaved rows. Block after block is then added to the gradient.
//
// Scratch, owned by the call: block_rows (left_count + right_count) elements.
// Cost: 2 rows left_count right_count FLOPs; packing copies 1 / (2 left_count) of that.
#pragma once

#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "product.h"

namespace seqkernels {

template <class Vector>
class WeightGradient {
    using T = typename Vector::Element;
    static constexpr int tile_rows = Tile<Vector>::rows;
    static constexpr int panel_vectors = Tile<Vector>::vectors;
    static constexpr int64_t block_rows = 256;

   public:
    WeightGradient(int64_t left_count, int64_t right_count)
        : left_count_(left_count),
          right_count_(right_count),
          right_(PanelLayout<Vector>{right_count, block_rows, panel_vectors, 1}.elements()),
          left_(checked_product({left_count, block_rows})) {}

    // Called by every thread of a region. left(r) and right(r) give rows of contiguous elements;
    // target is (left_count, right_count) contiguous.
    template <class Left, class Right>
    void run(int64_t rows, Left&& left, Right&& right, T* target, int thread, int threads,
             Barrier& barrier) const {
        const Range mine = part_of(left_count_, tile_rows, thread, threads);
        T* packed_left = left_.data() + mine.begin * block_rows;
        clear(target, mine);
        for (int64_t begin = 0; begin < rows; begin += block_rows) {
            const int64_t depth = smaller(block_rows, rows - begin);
            const PanelLayout<Vector> layout{right_count_, depth, panel_vectors, 1};
            pack_panels(right_.data(), layout, part_of(layout.panels(), 1, thread, threads),
                        [&](int64_t i, int64_t k) { return right(begin + k) + i; });
            pack_left(packed_left, mine, begin, depth, left);
            barrier.wait(threads);
            for (int64_t panel = 0; panel < layout.panels(); ++panel) {
                for_each_tile(mine.end - mine.begin, tile_rows, [&](int64_t first, int tile) {
                    add_tile(packed_left + first * depth, tile, layout, panel,
                             target + (mine.begin + first) * right_count_);
                });
            }
            barrier.wait(threads);
        }
    }

   private:
    void clear(T* target, Range mine) const {
        for (int64_t i = mine.begin * right_count_; i < mine.end * right_count_; ++i) target[i] = 0;
    }

    // A thread's columns of the left operand, tile after tile: packed[k][m] within a tile.
    template <class Left>
    void pack_left(T* packed, Range mine, int64_t begin, int64_t depth, Left&& left) const {
        for_each_tile(mine.end - mine.begin, tile_rows, [&](int64_t first, int tile) {
            T* target = packed + first * depth;
            for (int64_t k = 0; k < depth; ++k) {
                const T* source = left(begin + k) + mine.begin + first;
                for (int m = 0; m < tile; ++m) target[k * tile + m] = source[m];
            }
        });
    }

    void add_tile(const T* left, int tile, const PanelLayout<Vector>& layout, int64_t panel,
                  T* target) const {
        const int vectors = static_cast<int>(layout.units_of(panel));
        Vector sums[Tile<Vector>::sums];
        const T* pointers[tile_rows];
        for (int m = 0; m < tile; ++m) pointers[m] = left + m;
        for (int i = 0; i < tile * vectors; ++i) sums[i] = Vector::broadcast(0);
        multiply_accumulate(sums, tile, vectors, pointers, tile, right_.data() + layout.offset(panel),
                            layout.depth);
        for (int m = 0; m < tile; ++m) {
            for (int v = 0; v < vectors; ++v) {
                const int64_t i = layout.first_column(panel) + v * Vector::width;
                T* place = target + m * right_count_ + i;
                const int64_t count = right_count_ - i;
                store_up_to(load_up_to<Vector>(place, count) + sums[m * vectors + v], place, count);
            }
        }
    }

    const int64_t left_count_;
    const int64_t right_count_;
    const Scratch<T> right_;
    const Scratch<T> left_;
};

}  // namespace seqkernels
