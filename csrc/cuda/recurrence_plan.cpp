#include "recurrence_plan.h"

namespace seqkernels::cuda {

RecurrencePlan plan_recurrence(const RecurrenceShape& shape, int multiprocessors,
                               int64_t shared_bytes_of_block) {
    // Few units a block spread the weights, and the work of a step, over many multiprocessors; two
    // tiles of 8 columns are the least that a load of four matrices fills.
    for (int units = shape.gates() == 1 ? 16 : 8; units <= 16; units *= 2) {
        const int columns = static_cast<int>(shape.gates()) * units;
        if (persistent_shared_bytes(shape.hidden, columns) > shared_bytes_of_block) continue;
        for (int64_t row_tiles = 1; row_tiles <= most_row_tiles; ++row_tiles) {
            RecurrencePlan plan{};
            plan.units = units;
            plan.row_tiles = row_tiles;
            plan.slices = divide_rounding_up(shape.batch, plan.rows());
            // All blocks run at once, one to a multiprocessor: they wait for each other.
            plan.fits = plan.blocks(shape.hidden) <= multiprocessors;
            if (plan.fits) return plan;
        }
    }
    return {};
}

}  // namespace seqkernels::cuda
