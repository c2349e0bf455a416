// What the inputs of a recurrence add to its sums: input times W_ih^T, and both biases.
//
// Each thread projects what it will itself read: its samples' inputs of a few steps at a time,
// times the panels of its own hidden units. So no thread waits for another, and the projections
// stay in its L2 until the steps read them. They lie as the steps' sums do,
// [panel][row][unit][gate][lane], in whole vectors.
//
// Scratch, owned by the call: W_ih packed, G H I, unless few rows read it as it lies; the biases;
// for each thread projections of projected_bytes, or of one step if those are more, or of an
// even share of all rows where weights are read as they lie, and pointers to their rows.
// Cost: 2 rows G H I FLOPs. Limit: as the product's. In tiles 0.5 MiB of projections instead of 1
// is 5 % faster for bfloat16, N 64, H 256, and 5 % slower for H 512. There the weights come from
// beyond L2 each time, and the next panel of them is fetched while one is multiplied (3 %). Tried
// without gain, by vectors: weights read as they lie for more than 512 rows at a time (N 64, T 25,
// H 1024 5 % slower; H 1536 and 2048 6 % faster).
#pragma once

#include <cstdint>

#include "../core/scratch.h"
#include "row_product.h"
#include "unpacked_product.h"

namespace seqkernels {

template <class Vector, class Product, class Number>
class InputProjection {
    using T = typename Vector::Element;
    using Left = typename Product::Left;
    using Packed = typename Product::Packed;
    using Layout = PanelLayout<Vector>;
    // Weights are packed before they are multiplied by in tiles; else so few rows are multiplied by
    // them as they lie, more of them where to write the packed ones would be to write to memory.
    static int64_t most_rows_unpacked(const Layout& layout) {
        return Product::in_tiles ? 0 : is_beyond_caches(layout) ? 512 : 128;
    }
    static constexpr int64_t projected_bytes = Product::cache_bytes / 2;
    // A tile of rows may be read, and written, beyond the last.
    static constexpr int64_t spare_rows = Product::rows;

 public:
    // row_count: rows of all steps    samples: the most of one step    in_parts: whether rows that
    // have room together are projected few by few all the same
    InputProjection(const Layout& layout, const Matrix& weight, int64_t row_count, int64_t samples,
                    bool in_parts, int threads)
        : layout_(layout),
          weight_(weight),
          is_unpacked_(!in_parts && row_count <= most_rows_unpacked(layout)),
          line_(layout.units * layout.groups),
          most_rows_(larger(
              larger(rows_together<Product>(layout.depth), most_rows_unpacked(layout)), samples)),
          all_vectors_(checked_product({threads, vectors_of_thread(row_count, samples, threads)})),
          packed_(is_unpacked_ ? 0 : Product::packed_elements(layout)),
          bias_(layout.panels() * line_),
          vectors_(all_vectors_),
          given_(checked_product({threads, most_rows_})),
          scales_(checked_product({threads, most_rows_})) {}

    static int64_t left_elements(const Layout& layout) {
        return Product::left_elements(rows_together<Product>(layout.depth), layout.depth);
    }

    // Each thread its part. scratch: Product::pack_scratch_elements
    void pack(T* scratch, int thread, int threads) const {
        if (is_unpacked_) return;
        Product::pack_matrix(packed_.data(), layout_, part_of(layout_.panels(), 1, thread, threads),
                             scratch, weight_);
    }
    // bias(group, column) gives a vector of both biases' sum.
    template <class Bias>
    void set_bias(Bias&& bias, int thread, int threads) const {
        const Range panels = part_of(layout_.panels(), 1, thread, threads);
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            for (int64_t unit = 0; unit < layout_.units_of(panel); ++unit) {
                for (int64_t group = 0; group < layout_.groups; ++group) {
                    bias_.data()[panel * line_ + unit * layout_.groups + group] =
                        bias(group, layout_.first_column(panel) + unit * Vector::width);
                }
            }
        }
    }

    // A thread's room, and what is projected there.
    class Part {
     public:
        Part(const InputProjection& all, Range panels, int thread, int threads)
            : all_(all),
              panels_(panels),
              given_(all.given_.data() + thread * all.most_rows_),
              scales_(all.scales_.data() + thread * all.most_rows_) {
            const int64_t vectors = all.all_vectors_ / threads;
            sums_ = all.vectors_.data() + thread * vectors;
            const int64_t count = larger(1, panels.end - panels.begin);
            rows_ = smaller(all.most_rows_, vectors / (count * all.line_) - spare_rows);
        }

        // Whether rows are projected together with `count` others.
        bool has_room(int64_t rows, int64_t count) const { return rows + count <= rows_; }
        // Pointers to the rows, to be set before they are projected.
        const Number** given() const { return given_; }

        // copies: left_elements
        void project(int64_t rows, Left* copies) const {
            const int64_t together = rows_together<Product>(all_.layout_.depth);
            const int64_t blocks = all_.is_unpacked_ ? 1 : divide_rounding_up(rows, together);
            for (int64_t i = 0; i < blocks; ++i) {
                const Range block =
                    part_of(rows, Product::rows, static_cast<int>(i), static_cast<int>(blocks));
                project_block(block, copies);
            }
        }

        // The projections of rows from `row` on.
        const Vector* at(int64_t panel, int64_t row) const { return place(panel, row); }
        // Vectors between rows.
        int64_t line_of(int64_t panel) const {
            return all_.layout_.units_of(panel) * all_.layout_.groups;
        }

     private:
        Vector* place(int64_t panel, int64_t row) const {
            return sums_ + (panel - panels_.begin) * (rows_ + spare_rows) * all_.line_ +
                   row * line_of(panel);
        }

        void project_block(Range block, Left* copies) const {
            const Layout& layout = all_.layout_;
            const int64_t count = block.end - block.begin;
            const auto rows =
                Product::prepare(given_ + block.begin, Range{0, all_.is_unpacked_ ? 0 : count},
                                 layout.depth, copies, scales_);
            for (int64_t panel = panels_.begin; panel < panels_.end; ++panel) {
                Vector* sums = place(panel, block.begin);
                const Vector* bias = all_.bias_.data() + panel * all_.line_;
                if (!all_.is_unpacked_) {
                    const int64_t next = panel + 1 < panels_.end ? panel + 1 : panels_.begin;
                    Product::multiply_from(sums, bias, 0, rows, count, layout, panel,
                                           all_.packed_.data(), all_.weight_,
                                           Product::fetching(all_.packed_.data(), layout, next));
                    continue;
                }
                begin_sums(sums, bias, 0, count, line_of(panel));
                multiply_unpacked(sums, given_ + block.begin, count, layout, panel, all_.weight_);
            }
        }

        const InputProjection& all_;
        const Range panels_;
        const Number** const given_;
        T* const scales_;
        Vector* sums_;
        int64_t rows_;
    };

 private:
    // Vectors of a thread's projections: whichever way samples and panels are shared out among some
    // of the threads, room for one step, and for an even share of all rows where the weights are
    // not packed.
    int64_t vectors_of_thread(int64_t row_count, int64_t samples, int threads) const {
        const int64_t panels = layout_.panels();
        const auto share_of = [&](int64_t rows) {
            return checked_product({rows + threads, panels + threads, line_}) / threads + 1;
        };
        const int64_t wanted = projected_bytes / static_cast<int64_t>(sizeof(Vector));
        const int64_t all = checked_product({row_count, panels, line_});
        return larger(share_of(samples),
                      is_unpacked_ ? share_of(row_count) : smaller(wanted, all)) +
               spare_rows * (panels + 1) * line_;
    }

    const Layout layout_;
    const Matrix weight_;
    const bool is_unpacked_;
    const int64_t line_;  // vectors of a row of a whole panel
    const int64_t most_rows_;
    const int64_t all_vectors_;
    const Scratch<Packed> packed_;
    const Scratch<Vector> bias_;
    const Scratch<Vector> vectors_;
    const Scratch<const Number*> given_;
    const Scratch<T> scales_;
};

}  // namespace seqkernels
