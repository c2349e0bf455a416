// A single step of an LSTM or plain RNN, a cell's: both weights are used once, and read row by row
// as they lie (unpacked_rows.h). The order of its sums is not that of longer sequences: it differs
// from them by rounding.
//
// Scratch, owned by the call: pointers to the rows of the batch; for each thread copies of a
// vector's worth of rows of weights, where their numbers are not side by side.
//
// Cost: 2 N G H (I + H) FLOPs. Limit: the bandwidth of where the weights lie. They pass there and
// back again, call by call, so that what L2 holds of them is used twice (family 6, model 167: LSTM
// cell of N 1, H 512: 247 to 197 us).
#pragma once

#include <atomic>
#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "product.h"
#include "recurrence_schedule.h"
#include "recurrent_states.h"
#include "unpacked_rows.h"

namespace seqkernels {

template <class Vector, RecurrentCell cell_type>
class RecurrenceSingleStep {
    using T = typename Vector::Element;
    using States = RecurrentStates<Vector, cell_type, T>;
    using Row = typename States::Row;
    static constexpr int gates = States::gates;
    static constexpr int tile_rows = Tile<Vector>::rows;
    // Rows whose sums are kept while a few rows of weights pass.
    static constexpr int64_t block_rows = unpacked_block_rows;
    // A step with fewer weights is over before other threads are awake.
    static constexpr int64_t single_thread_weights = 1 << 17;

 public:
    explicit RecurrenceSingleStep(const RecurrenceForward<T>& arguments)
        : call_(arguments),
          shape_(arguments.shape),
          schedule_(shape_, arguments.lengths, arguments.batch_sizes),
          states_(arguments, schedule_) {}

    void run(int threads) {
        states_.place_cell_states(nullptr);
        const int64_t hidden = shape_.hidden;
        const int64_t vectors = divide_rounding_up(hidden, Vector::width);
        const int64_t count = schedule_.active(0);
        const Scratch<Row> rows(count);
        const Scratch<const T*> inputs(count), states(count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t n = schedule_.sample(i);
            rows.data()[i] = states_.row(n, 0);
            inputs.data()[i] = schedule_.input_row(call_.input, n, 0);
            states.data()[i] = rows.data()[i].hidden_before;
        }
        const bool has_state = call_.initial_hidden != nullptr;
        const Term<T> input_term{inputs.data(), call_.weight_ih, shape_.inputs};
        const Term<T> state_term{has_state ? states.data() : nullptr, call_.weight_hh, hidden};
        const int64_t copied = input_term.copied(Vector::width) + state_term.copied(Vector::width);
        const Scratch<T> copies(checked_product({copied, threads}));
        const int64_t weights = gates * hidden * (shape_.inputs + hidden);
        static std::atomic<unsigned> calls{0};
        const bool is_back = calls.fetch_add(1, std::memory_order_relaxed) % 2 == 1;
        const bool is_small = weights * (1 + count / 2) < single_thread_weights;
        run_parallel(is_small ? 1 : threads, [&](int thread, int granted) {
            const int64_t column_parts = larger(1, smaller(vectors, granted));
            const int64_t row_parts =
                larger(1, smaller(divide_rounding_up(count, tile_rows), granted / column_parts));
            const Grid grid{row_parts, column_parts};
            const Range samples = grid.rows(count, tile_rows, thread);
            const Range columns = grid.columns(vectors, thread);
            Vector sums[block_rows * gates];
            for (int64_t position = columns.begin; position < columns.end; ++position) {
                // There and back again: the weights that the last call read last are still in L2.
                const int64_t vector =
                    is_back ? columns.begin + columns.end - 1 - position : position;
                const int64_t unit = vector * Vector::width;
                for (int64_t i = samples.begin; i < samples.end; i += block_rows) {
                    const int64_t block = smaller(block_rows, samples.end - i);
                    const Term<T> terms[most_terms] = {input_term.from(i), state_term.from(i)};
                    for (int64_t g = 0; g < gates; ++g) {
                        const int64_t first = g * hidden + unit;
                        const Vector bias = states_.bias(first, hidden - unit);
                        for (int64_t m = 0; m < block; ++m) sums[m * gates + g] = bias;
                        add_terms(sums + g, gates, block, first,
                                  smaller(Vector::width, hidden - unit), terms,
                                  copies.data() + thread * copied);
                    }
                    for (int64_t m = 0; m < block; ++m) {
                        states_.next(rows.data()[i + m], unit, sums + m * gates);
                    }
                }
            }
            states_.end_steps();
        });
        states_.finish({0, shape_.batch});
    }

 private:
    const RecurrenceForward<T>& call_;
    const RecurrenceShape& shape_;
    const Schedule schedule_;
    States states_;
};

}  // namespace seqkernels
