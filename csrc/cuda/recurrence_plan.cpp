#include "recurrence_plan.h"

namespace seqkernels::cuda {

RecurrencePlan plan_recurrence(const RecurrenceShape& shape, Pass pass, int multiprocessors,
                               int64_t shared_bytes_of_block) {
    const bool is_forward = pass == Pass::forward;
    const int gates = static_cast<int>(shape.gates());
    // Few units a block spread the weights, and the work of a step, over many multiprocessors; two
    // tiles of 8 columns are the least that a load of four matrices fills.
    for (int units = is_forward && gates == 4 ? 8 : backward_units; units <= 16; units *= 2) {
        RecurrencePlan plan{};
        plan.units = units;
        plan.columns = is_forward ? gates * units : units;
        plan.depth = is_forward ? shape.hidden : gates * shape.hidden;
        plan.unit_blocks = divide_rounding_up(shape.hidden, units);
        if (persistent_shared_bytes(plan) > shared_bytes_of_block) continue;
        // Arrivals are counted in 32 bits.
        if (shape.steps >= (int64_t{1} << 31) / plan.unit_blocks) continue;
        for (plan.row_tiles = 1; plan.row_tiles <= most_row_tiles; ++plan.row_tiles) {
            plan.slices = divide_rounding_up(shape.batch, plan.rows());
            // All blocks run at once, one to a multiprocessor: they wait for each other.
            plan.fits = plan.blocks() <= multiprocessors;
            if (plan.fits) return plan;
        }
    }
    return {};
}

}  // namespace seqkernels::cuda
