// Weight gradients of a recurrence, over the rows of many steps at once:
//   target_p[row(m)][i] = sum over rows r of left[r][m] * right_p[r][i],  left_sums[m] = sum of
//   left[r][m]
// for m in [0, left_count), and for each of two right operands p, i in [0, right_count_p). row(m):
// as the gates' order says (gate_order.h).
//
// Rows come block after block. The operands lie with the summed index outermost, so they are
// packed: the right ones into panels, shared by all threads; the left one, each thread its own rows
// of the gradient, into tiles of interleaved rows. Block after block is then added to the
// gradients.
//
// Scratch, owned by the call: block_rows (left_count + right_count_0 + right_count_1) elements,
// left_count integers.
// Cost: 2 rows left_count right_count FLOPs; packing copies 1 / (2 left_count) of that.
//
// Measured, training an LSTM of T 50 in float32 (AMD family 26, AVX-512, one thread): the gradients
// that sums are added to fetched before the sums are computed, 6 % less time at H 512, 1 % at 256;
// eight tiles packed at a time in place of all, another 3 and 4 % (N 64, H 512 193 to 176 ms, of
// them 148 for the multiply-adds). Tried without gain: fetching the panels; blocks of 160 rows
// (up to 2 % slower) and of 512 (1 to 2 % faster at H 512, up to 1 % slower at 256).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "gate_order.h"
#include "product.h"

namespace seqkernels {

// sums[m] (+)= the sum of rows[k][m] over `count` rows k, for m in `columns`.
template <class Vector, class Number>
inline void add_rows(typename Vector::Element* sums, Range columns, const Number* const* rows,
                     int64_t count, bool is_first) {
    constexpr int together = 8;
    for (int64_t begin = columns.begin; begin < columns.end; begin += together * Vector::width) {
        const int64_t present = columns.end - begin;
        const auto for_each = [&](auto&& function) {
            for (int v = 0; v < together && v * Vector::width < present; ++v) {
                function(v, begin + v * Vector::width, present - v * Vector::width);
            }
        };
        Vector sum[together];
        for (Vector& zero : sum) zero = Vector::broadcast(0);
        for_each([&](int v, int64_t i, int64_t up_to) {
            if (!is_first) sum[v] = load_up_to<Vector>(sums + i, up_to);
        });
        for (int64_t k = 0; k < count; ++k) {
            for_each([&](int v, int64_t i, int64_t up_to) {
                sum[v] = sum[v] + load_up_to<Vector>(rows[k] + i, up_to);
            });
        }
        for_each([&](int v, int64_t i, int64_t up_to) { store_up_to(sum[v], sums + i, up_to); });
    }
}

// Rows that are multiplied together.
struct GradientBlock {
    int64_t depth;  // rows
    bool is_first;
    bool is_last;
};

template <class Vector>
class WeightGradient {
    using T = typename Vector::Element;
    static constexpr int tile_rows = Tile<Vector>::rows;
    static constexpr int panel_vectors = Tile<Vector>::vectors;

 public:
    // The most rows of a block, and as many as there are in all but the last.
    static constexpr int64_t block_rows = 256;

    // One right operand and where its gradient goes: (left_count, count) contiguous, written whole.
    template <class Number>
    class Operand {
        static_assert(std::is_same_v<Number, T>);

     public:
        // Without a target nothing is computed.
        Operand(int64_t count, T* target, int64_t, int64_t)
            : count_(target == nullptr ? 0 : count),
              target_(target),
              packed_(PanelLayout<Vector>{count_, block_rows, panel_vectors, 1}.elements()) {}

     private:
        friend class WeightGradient;
        const int64_t count_;
        T* const target_;
        const Scratch<T> packed_;
    };

    WeightGradient(const GateOrder& order, bool has_operands, int)
        : order_(order),
          has_operands_(has_operands),
          rows_(has_operands ? order.count() : 0),
          left_(checked_product({has_operands ? order.count() : 0, block_rows})) {
        if (has_operands) order.list_rows(rows_.data());
    }

    // Called by every thread of a region. left and right_p: pointers to the block's rows of
    // contiguous elements. left_sums: left_count, or null. Threads have met before each call, and
    // the block's rows may be written again when they have met after it.
    void add(const GradientBlock& block, const T* const* left, T* left_sums,
             const Operand<T>& operand0, const T* const* right0, const Operand<T>& operand1,
             const T* const* right1, int thread, int threads, Barrier& barrier) const {
        const Range mine = part_of(order_.count(), tile_rows, thread, threads);
        T* packed_left = left_.data() + mine.begin * block_rows;
        if (left_sums != nullptr) {
            add_rows<Vector>(left_sums, mine, left, block.depth, block.is_first);
        }
        if (!has_operands_) return;
        if (block.is_first) {
            clear(operand0, mine);
            clear(operand1, mine);
        }
        pack_right(operand0, block.depth, right0, thread, threads);
        pack_right(operand1, block.depth, right1, thread, threads);
        pack_left(packed_left, mine, block.depth, left);
        barrier.wait(threads);
        add_product(packed_left, mine, operand0, block.depth);
        add_product(packed_left, mine, operand1, block.depth);
    }

 private:
    T* target(const Operand<T>& operand, int64_t place) const {
        return operand.target_ + rows_.data()[place] * operand.count_;
    }

    void clear(const Operand<T>& operand, Range mine) const {
        if (operand.count_ == 0) return;
        for (int64_t m = mine.begin; m < mine.end; ++m) {
            std::memset(target(operand, m), 0,
                        static_cast<std::size_t>(operand.count_) * sizeof(T));
        }
    }

    // A thread's panels of a block of a right operand, whose rows lie as panels want them.
    static void pack_right(const Operand<T>& operand, int64_t depth, const T* const* right,
                           int thread, int threads) {
        const PanelLayout<Vector> layout{operand.count_, depth, panel_vectors, 1};
        const Range panels = part_of(layout.panels(), 1, thread, threads);
        if (panels.begin == panels.end) return;
        for (int64_t k = 0; k < depth; ++k) {
            const T* source = right[k];
            for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
                const int64_t units = layout.units_of(panel);
                T* target =
                    operand.packed_.data() + layout.offset(panel) + k * units * Vector::width;
                for (int64_t unit = 0; unit < units; ++unit) {
                    const int64_t i = layout.first_column(panel) + unit * Vector::width;
                    load_up_to<Vector>(source + i, operand.count_ - i)
                        .store(target + unit * Vector::width);
                }
            }
        }
    }

    // A thread's columns of a block of the left operand, tile after tile: packed[k][m] within a
    // tile. Some tiles at a time: so few places are written by turns, and lines read once.
    static void pack_left(T* packed, Range mine, int64_t depth, const T* const* left) {
        constexpr int together = 8;
        int64_t firsts[together];
        int tiles[together];
        int waiting = 0;
        const auto pack = [&] {
            for (int64_t k = 0; k < depth; ++k) {
                const T* source = left[k] + mine.begin;
                for (int i = 0; i < waiting; ++i) {
                    with_constant<tile_rows>(tiles[i], [&](auto rows) {
                        std::memcpy(packed + firsts[i] * depth + k * rows, source + firsts[i],
                                    rows * sizeof(T));
                    });
                }
            }
            waiting = 0;
        };
        for_each_tile(mine.end - mine.begin, tile_rows, [&](int64_t first, int tile) {
            firsts[waiting] = first;
            tiles[waiting++] = tile;
            if (waiting == together) pack();
        });
        pack();
    }

    void add_product(const T* packed_left, Range mine, const Operand<T>& operand,
                     int64_t depth) const {
        const PanelLayout<Vector> layout{operand.count_, depth, panel_vectors, 1};
        for (int64_t panel = 0; panel < layout.panels(); ++panel) {
            for_each_tile(mine.end - mine.begin, tile_rows, [&](int64_t first, int tile) {
                add_tile(packed_left + first * depth, tile, layout, panel, operand,
                         mine.begin + first);
            });
        }
    }

    void add_tile(const T* left, int tile, const PanelLayout<Vector>& layout, int64_t panel,
                  const Operand<T>& operand, int64_t first) const {
        const int64_t vectors = layout.units_of(panel);
        for (int m = 0; m < tile; ++m) {
            const T* const row = target(operand, first + m) + layout.first_column(panel);
            for (int64_t v = 0; v < vectors; ++v) __builtin_prefetch(row + v * Vector::width);
        }
        Vector sums[most_sums<Vector>];
        const T* pointers[tile_rows] = {};
        for (int m = 0; m < tile; ++m) pointers[m] = left + m;
        for (int i = 0; i < tile * vectors; ++i) sums[i] = Vector::broadcast(0);
        multiply_accumulate(sums, tile, vectors, pointers, tile,
                            operand.packed_.data() + layout.offset(panel), layout.depth);
        for (int m = 0; m < tile; ++m) {
            T* const row = target(operand, first + m);
            for (int64_t v = 0; v < vectors; ++v) {
                const int64_t i = layout.first_column(panel) + v * Vector::width;
                T* place = row + i;
                const int64_t count = operand.count_ - i;
                store_up_to(load_up_to<Vector>(place, count) + sums[m * vectors + v], place, count);
            }
        }
    }

    const GateOrder order_;
    const bool has_operands_;
    const Scratch<int64_t> rows_;  // of a gradient, in that order
    const Scratch<T> left_;
};

}  // namespace seqkernels
