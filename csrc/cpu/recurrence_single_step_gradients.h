// Gradients of a single step of an LSTM or plain RNN, a cell's. With da the gradients of the gates
// before their activations (recurrence_backward.h), of few samples
//   grad_initial_hidden = W_hh^T da,  grad_input = W_ih^T da,
//   grad_weight_hh = da h^T,  grad_weight_ih = da x^T,  grad_bias = sum da
// Nothing is packed: each weight is used once, read row by row as it lies, and each number of the
// weights' gradients written once.
//
// Shapes and ownership: RecurrenceBackward in kernels.h. Scratch, owned by the call: da, N (G H and
// a cache line); pointers to the rows of the batch; a state of zeros, H, unless the initial ones
// are given; the cell states' gradients, N H, where the initial ones' are not asked for. The order
// of the sums is not that of longer sequences: they differ by rounding.
//
// Cost: 4 N G H (I + H) FLOPs. Limit, of few samples: reading the weights and writing as many
// gradients, where they lie. Measured, time over that of recurrence_backward.h (family 6, model
// 207, two threads, float32, AVX-512):
//              LSTM, N 1    4   16   32   64  128    RNN, N 1    4   16   32   64  128
//   H 64             .08  .38  .48  .70  .99 1.23         .22  .35  .49  .58  .73  .92
//   H 256            .40  .48  .50  .79 1.12 1.32         .44  .45  .48  .70  .96 1.13
//   H 512            .35  .39  .60  .83 1.20 1.39         .38  .43  .53  .71 1.04 1.15
//
// Tried without gain: writing the weights' gradients past the caches (an LSTM of H 512 and more, in
// loops of 1 to 4 steps: between 20 % faster and slower, by what torch's allocator has to give);
// the sums of the states' gradients for all columns before the next rows of weights, in place of
// some columns for all rows (N 32, H 512: 6 % slower; of fewer samples within the noise).
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "product.h"
#include "recurrence_schedule.h"
#include "recurrent_gradients.h"
#include "weight_gradient.h"

namespace seqkernels {

// targets[n][c] = the sum of factors[n][j] * matrix[j][c] over the `depth` rows j of a matrix; c in
// `columns`.
template <class Vector>
class MatrixRowSums {
    using T = typename Vector::Element;
    // Matrix rows added at once: as many multiply-adds for each sum that is loaded and stored.
    static constexpr int rows_at_once = 8;
    static constexpr int most_vectors = Vector::registers == 32 ? 2 : 1;
    static constexpr int64_t step = most_vectors * Vector::width;

 public:
    MatrixRowSums(const Matrix& matrix, int64_t depth, T* const* targets, const T* const* factors,
                  int64_t count)
        : matrix_(matrix), depth_(depth), targets_(targets), factors_(factors), count_(count) {}

    void compute(Range columns) const {
        if (count_ == 0) return;
        // The sums of so many columns stay in L1 while all rows pass.
        constexpr int64_t sums_bytes = 16 << 10;
        const int64_t fitting = sums_bytes / int64_t{sizeof(T)} / count_;
        const int64_t together = larger(1, fitting / step) * step;
        with_numbers<T>(matrix_.numbers, [&](const auto* numbers) {
            for (int64_t c = columns.begin; c < columns.end; c += together) {
                const Range some{c, smaller(columns.end, c + together)};
                int64_t j = 0;
                for (; j + rows_at_once <= depth_; j += rows_at_once) {
                    add<rows_at_once>(numbers, j, some);
                }
                for (; j < depth_; ++j) add<1>(numbers, j, some);
            }
        });
    }

 private:
    template <int R, class Number>
    void add(const Number* numbers, int64_t j, Range columns) const {
        int64_t c = columns.begin;
        for (; c + step <= columns.end; c += step) add<R, most_vectors>(numbers, j, c, step);
        for (; c < columns.end; c += Vector::width) add<R, 1>(numbers, j, c, columns.end - c);
    }

    template <int R, int V, class Number>
    void add(const Number* numbers, int64_t j, int64_t c, int64_t present) const {
        Vector row[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                const int64_t i = v * Vector::width;
                row[r][v] = numbers_of(numbers, j + r, c + i, present - i);
            }
        }
        for (int64_t n = 0; n < count_; ++n) {
            T* const target = targets_[n] + c;
            const T* const factors = factors_[n] + j;
            Vector sum[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                const int64_t i = v * Vector::width;
                sum[v] =
                    j == 0 ? Vector::broadcast(0) : load_up_to<Vector>(target + i, present - i);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Vector factor = Vector::broadcast(factors[r]);
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) sum[v] = multiply_add(factor, row[r][v], sum[v]);
            }
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                store_up_to(sum[v], target + v * Vector::width, present - v * Vector::width);
            }
        }
    }

    template <class Number>
    Vector numbers_of(const Number* numbers, int64_t j, int64_t c, int64_t present) const {
        const Number* const first = numbers + j * matrix_.stride_row + c * matrix_.stride_column;
        if (matrix_.stride_column == 1) return load_up_to<Vector>(first, present);
        Number side_by_side[Vector::width] = {};
        for (int64_t i = 0; i < smaller(Vector::width, present); ++i) {
            side_by_side[i] = first[i * matrix_.stride_column];
        }
        return load_up_to<Vector>(side_by_side, Vector::width);
    }

    const Matrix matrix_;
    const int64_t depth_;
    T* const* const targets_;
    const T* const* const factors_;
    const int64_t count_;
};

// target[j][c] = the sum of left[n][j] * right[n][c] over `count` rows n, for j in `rows` and c in
// [0, width), the distance of a row of the target from the next.
template <class Vector>
class OuterProducts {
    using T = typename Vector::Element;
    static constexpr int tile_rows = Tile<Vector>::rows;
    static constexpr int tile_vectors = Tile<Vector>::vectors;

 public:
    OuterProducts(T* target, const T* const* left, const T* const* right, int64_t width,
                  int64_t count)
        : target_(target), left_(left), right_(right), width_(width), count_(count) {}

    void compute(Range rows) const {
        int64_t j = rows.begin;
        for (; j + tile_rows <= rows.end; j += tile_rows) store<tile_rows>(j);
        for (; j < rows.end; ++j) store<1>(j);
    }

 private:
    template <int R>
    void store(int64_t j) const {
        constexpr int64_t step = tile_vectors * Vector::width;
        int64_t c = 0;
        for (; c + step <= width_; c += step) store<R, tile_vectors>(j, c, step);
        for (; c < width_; c += Vector::width) store<R, 1>(j, c, width_ - c);
    }

    template <int R, int V>
    void store(int64_t j, int64_t c, int64_t present) const {
        Vector sum[R][V];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[r][v] = Vector::broadcast(0);
        }
        for (int64_t n = 0; n < count_; ++n) {
            const T* const right = right_[n] + c;
            const T* const left = left_[n] + j;
            Vector column[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                column[v] =
                    load_up_to<Vector>(right + v * Vector::width, present - v * Vector::width);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Vector factor = Vector::broadcast(left[r]);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(factor, column[v], sum[r][v]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            T* const target = target_ + (j + r) * width_ + c;
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                store_up_to(sum[r][v], target + v * Vector::width, present - v * Vector::width);
            }
        }
    }

    T* const target_;
    const T* const* const left_;
    const T* const* const right_;
    const int64_t width_;
    const int64_t count_;
};

template <class Vector, RecurrentCell cell_type>
class RecurrenceSingleStepGradients {
    using T = typename Vector::Element;
    using Gradients = RecurrentGradients<Vector, cell_type, T>;
    using Row = typename Gradients::Row;
    static constexpr int gates = Gradients::gates;
    // Larger batches are multiplied by packed panels.
    static constexpr int64_t most_samples = 32;
    // A step with fewer weights is over before other threads are awake.
    static constexpr int64_t single_thread_weights = 1 << 16;

 public:
    static bool pays_for(const RecurrenceShape& shape) {
        return shape.steps == 1 && shape.batch <= most_samples;
    }

    explicit RecurrenceSingleStepGradients(const RecurrenceBackward<T>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(shape_, arguments.lengths, arguments.batch_sizes),
          gradients_(arguments, schedule_) {}

    void run(int threads) {
        const int64_t hidden = shape_.hidden, gate_rows = gates * hidden;
        const int64_t count = schedule_.active(0);
        const Scratch<T> grad_cells(gradients_.grad_cell_elements());
        gradients_.place_cell_states(nullptr, grad_cells.data());
        // A cache line more, so that the same gate of all samples is not in one set of a cache.
        const int64_t pitch = gate_rows + cache_line_bytes / int64_t{sizeof(T)};
        const Scratch<T> grad_gates(checked_product({count, pitch}));
        const Scratch<Row> rows(count);
        const Scratch<const T*> of_gates(count), inputs(count), states(count);
        const Scratch<T*> grad_inputs(count), grad_states(count);
        const Scratch<T> no_state(call_.initial_hidden == nullptr ? hidden : 0);
        if (call_.initial_hidden == nullptr) {
            std::memset(no_state.data(), 0, static_cast<std::size_t>(hidden) * sizeof(T));
        }
        for (int64_t i = 0; i < count; ++i) {
            const int64_t n = schedule_.sample(i);
            rows.data()[i] = gradients_.row(n, 0);
            of_gates.data()[i] = grad_gates.data() + i * pitch;
            inputs.data()[i] = schedule_.input_row(call_.input, n, 0);
            states.data()[i] = call_.initial_hidden == nullptr
                                   ? no_state.data()
                                   : row_of(call_.initial_hidden, n, hidden);
            grad_inputs.data()[i] = row_of(call_.grad_input, n, shape_.inputs);
            grad_states.data()[i] = row_of(call_.grad_initial_hidden, n, hidden);
        }
        const int64_t weights = gate_rows * (shape_.inputs + hidden);
        const bool is_small = weights * (1 + count / 2) < single_thread_weights;
        Barrier barrier;
        run_parallel(is_small ? 1 : threads, [&](int thread, int granted) {
            const auto part = [&](int64_t numbers) {
                return part_of(numbers, Vector::width, thread, granted);
            };
            gradients_.start(thread, granted);
            barrier.wait(granted);
            const Range units = part(hidden);
            for (int64_t i = 0; i < count; ++i) {
                const Row& row = rows.data()[i];
                T* const target = grad_gates.data() + i * pitch;
                for (int64_t unit = units.begin; unit < units.end; unit += Vector::width) {
                    gradients_.step_back(row, unit, gradients_.of_state(row, unit), target + unit,
                                         hidden);
                }
            }
            barrier.wait(granted);
            if (call_.grad_initial_hidden != nullptr) {
                MatrixRowSums<Vector>(call_.weight_hh, gate_rows, grad_states.data(),
                                      of_gates.data(), count)
                    .compute(part(hidden));
            }
            if (call_.grad_input != nullptr) {
                MatrixRowSums<Vector>(call_.weight_ih, gate_rows, grad_inputs.data(),
                                      of_gates.data(), count)
                    .compute(part(shape_.inputs));
            }
            const Range mine = part_of(gate_rows, Tile<Vector>::rows, thread, granted);
            if (call_.grad_weight_hh != nullptr) {
                OuterProducts<Vector>(call_.grad_weight_hh, of_gates.data(), states.data(), hidden,
                                      count)
                    .compute(mine);
            }
            if (call_.grad_weight_ih != nullptr) {
                OuterProducts<Vector>(call_.grad_weight_ih, of_gates.data(), inputs.data(),
                                      shape_.inputs, count)
                    .compute(mine);
            }
            if (call_.grad_bias != nullptr) {
                add_rows<Vector>(call_.grad_bias, mine, of_gates.data(), count, true);
            }
        });
        for (int64_t i = count; i < shape_.batch; ++i) finish_idle(schedule_.sample(i));
    }

 private:
    template <class Pointer>
    static Pointer* row_of(Pointer* numbers, int64_t n, int64_t width) {
        return numbers == nullptr ? nullptr : numbers + n * width;
    }

    // A sample of length 0.
    void finish_idle(int64_t n) const {
        gradients_.pass_through(n);
        if (call_.grad_input == nullptr) return;
        std::memset(call_.grad_input + n * shape_.inputs, 0,
                    static_cast<std::size_t>(shape_.inputs) * sizeof(T));
    }

    const RecurrenceBackward<T>& call_;
    const RecurrenceShape& shape_;
    const Schedule schedule_;
    Gradients gradients_;
};

}  // namespace seqkernels
