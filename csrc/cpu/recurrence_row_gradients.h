// What the gradients da of a recurrence's gates give beside those of its states: over the rows of
// many steps at once
//   grad_input = W_ih^T da,  grad_weight_ih = da x^T,  grad_weight_hh = da h_{t-1}^T,  grad_bias =
//   sum da
//
// Shapes and ownership: RecurrenceBackward in kernels.h. Scratch, owned by the call: W_ih packed
// the other way round, G H I; that of weight_gradient.h or its like in tiles; the bias's gradient
// in the gates' order, G H; a state of zeros, H, unless the initial ones are given.
//
// Cost: 2 G H (2 I + H) FLOPs a row. Limit: the multiply-add rate.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "gate_order.h"
#include "product.h"
#include "recurrence_schedule.h"
#include "row_product.h"
#include "weight_gradient.h"

namespace seqkernels {

// Packs a thread's panels of what gates' gradients are multiplied with.
template <class Product, class Vector>
inline void pack_gate_weights(typename Product::Packed* packed, const PanelLayout<Vector>& layout,
                              Range panels, const GateWeights& weights,
                              typename Vector::Element* scratch) {
    Product::pack(packed, layout, panels, scratch,
                  [&](typename Vector::Element* target, int64_t panel) {
                      pack_panel(target, layout, panel, weights);
                  });
}

// Number: what input, states and the gradients of gates hold.
template <class Vector, class Product, class Gradient, class Number>
class RowGradients {
    using T = typename Vector::Element;
    using Packed = typename Product::Packed;
    using Operand = typename Gradient::template Operand<Number>;

 public:
    // The most rows of a block, and as many as there are in all but the last.
    static constexpr int64_t block_rows = Gradient::block_rows;

    // Rows of gates' gradients that are multiplied together, in the order they are made: from the
    // last step to the first, in each the samples in the schedule's order.
    struct Block {
        GradientBlock rows;
        int64_t first;           // counted from the very first
        int64_t step, position;  // of that one
    };

    RowGradients(const RecurrenceBackward<Number>& arguments, const Schedule& schedule,
                 const GateOrder& order, int threads)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(schedule),
          order_(order),
          layout_{shape_.inputs, order.count(), Product::vectors, 1},
          packed_(needs_input() ? Product::packed_elements(layout_) : 0),
          gradient_(order, needs_weights(), threads),
          inputs_(shape_.inputs, call_.grad_weight_ih, order.count(), schedule.row_count()),
          states_(shape_.hidden, call_.grad_weight_hh, order.count(), schedule.row_count()),
          bias_sums_(needs_bias() ? order.count() : 0),
          no_state_(call_.initial_hidden == nullptr ? shape_.hidden : 0) {
        if (call_.initial_hidden != nullptr) return;
        const auto bytes = static_cast<std::size_t>(shape_.hidden) * sizeof(Number);
        std::memset(no_state_.data(), 0, bytes);
    }

    bool are_wanted() const { return needs_input() || needs_weights() || needs_bias(); }

    int64_t pack_scratch_elements() const { return Product::pack_scratch_elements(layout_); }
    int64_t left_elements() const {
        return Product::left_elements(rows_together<Product>(layout_.depth), layout_.depth);
    }

    // Each thread its part. scratch: pack_scratch_elements
    void pack(T* scratch, int thread, int threads) const {
        if (!needs_input()) return;
        pack_gate_weights<Product>(packed_.data(), layout_,
                                   part_of(layout_.panels(), 1, thread, threads), input_operand(),
                                   scratch);
    }

    // Called by every thread of a region; left_row(k): row k of the block. Threads have met before
    // each call, and the rows may be written again when they have met after it.
    // copies: left_elements
    template <class LeftRow>
    void add(const Block& block, LeftRow&& left_row, typename Product::Left* copies, int thread,
             int threads, Barrier& barrier) const {
        const Number* left[block_rows];
        const Number *input_rows[block_rows], *state_rows[block_rows];
        Number* grad_rows[block_rows];
        int64_t step = block.step, position = block.position;
        for (int64_t k = 0; k < block.rows.depth; ++k, ++position) {
            for (; position == schedule_.active(step); position = 0) --step;
            const int64_t n = schedule_.sample(position), row = schedule_.row(n, step);
            left[k] = left_row(k);
            input_rows[k] = schedule_.input_row(call_.input, n, step);
            state_rows[k] = state_before(n, step);
            grad_rows[k] = needs_input() ? call_.grad_input + row * shape_.inputs : nullptr;
        }
        if (needs_input()) {
            const int64_t panels = layout_.panels();
            const Grid grid = product_grid(block.rows.depth, Product::rows, panels, threads);
            multiply_rows<Vector, Product>(
                layout_, packed_.data(), input_operand(), grid.columns(panels, thread),
                grid.rows(block.rows.depth, Product::rows, thread), nullptr,
                [&](int64_t k) { return left[k]; }, [&](int64_t k) { return grad_rows[k]; },
                copies);
        }
        gradient_.add(block.rows, left, needs_bias() ? bias_sums_.data() : nullptr, inputs_,
                      input_rows, states_, state_rows, thread, threads, barrier);
    }

    // Zeros beyond the samples' lengths, for some samples.
    void clear_beyond(Range samples) const {
        if (!needs_input()) return;
        for (int64_t n = samples.begin; n < samples.end; ++n) {
            schedule_.for_each_row_beyond(n, [&](int64_t row) {
                std::memset(call_.grad_input + row * shape_.inputs, 0,
                            static_cast<std::size_t>(shape_.inputs) * sizeof(Number));
            });
        }
    }
    // When all blocks have been added, by one thread.
    void store_bias_gradient() const {
        if (!needs_bias()) return;
        order_.for_each_gate([&](int64_t place, int64_t count, int64_t row) {
            convert_numbers<Vector>(bias_sums_.data() + place, call_.grad_bias + row, count);
        });
    }

 private:
    bool needs_input() const { return call_.grad_input != nullptr; }
    bool needs_weights() const {
        return call_.grad_weight_ih != nullptr || call_.grad_weight_hh != nullptr;
    }
    bool needs_bias() const { return call_.grad_bias != nullptr; }
    GateWeights input_operand() const { return {call_.weight_ih, order_, {0, order_.halves()}}; }

    // What sample n's hidden state was before a step.
    const Number* state_before(int64_t n, int64_t step) const {
        if (step > 0) return call_.output + schedule_.row(n, step - 1) * shape_.hidden;
        return call_.initial_hidden == nullptr ? no_state_.data()
                                               : call_.initial_hidden + n * shape_.hidden;
    }

    const RecurrenceBackward<Number>& call_;
    const RecurrenceShape& shape_;
    const Schedule& schedule_;
    const GateOrder order_;
    const PanelLayout<Vector> layout_;
    const Scratch<Packed> packed_;
    const Gradient gradient_;
    const Operand inputs_, states_;
    const Scratch<T> bias_sums_;
    const Scratch<Number> no_state_;
};

}  // namespace seqkernels
