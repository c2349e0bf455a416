#include "recurrence_plan.h"

namespace seqkernels::cuda {
namespace {

RecurrencePlan plan_of_units(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                             int units) {
    const bool is_forward = pass == Pass::forward;
    const int gates = static_cast<int>(shape.gates());
    RecurrencePlan plan{};
    plan.units = units;
    plan.gates = is_forward ? gates : 1;
    plan.planes = planes_of(element_bytes);
    plan.depths = is_forward ? 1 : gates;
    plan.unit_blocks = divide_rounding_up(shape.hidden, units);
    plan.slots = smaller(shape.steps + 1, exchange_slots);
    return plan;
}

// Spreads the batch over as many slices.
void slice(RecurrencePlan& plan, int64_t batch, int64_t most_slices) {
    const int64_t tiles =
        divide_rounding_up(divide_rounding_up(batch, samples_of_matrix), most_slices);
    plan.sample_tiles = tiles == 1 ? 1 : most_sample_tiles;
    plan.rounds = divide_rounding_up(tiles, plan.sample_tiles);
    plan.slices = divide_rounding_up(batch, plan.rows());
}

// With the blocks of a slice in a cluster a state's way is half as long: on an H200 an LSTM of 256
// units and 16 samples takes 1.2 us a step in place of 1.6. With blocks of 32 units (up to 512) it
// takes as long as through memory, and with 16 samples a slice longer (64 samples of 256 units 2.2
// us, through memory 1.5).
RecurrencePlan plan_in_clusters(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                                const RecurrenceGpu& gpu) {
    RecurrencePlan plan = plan_of_units(shape, element_bytes, pass, units_of_cluster_block);
    if (element_bytes != 2 || shape.hidden > most_units_of_cluster) return {};
    // A single block is none: launched without a cluster it may not send.
    if (plan.unit_blocks < 2 || plan.unit_blocks > gpu.largest_cluster) return {};
    plan.in_cluster = true;
    // A cluster is in one part of the GPU, of 16 or 18 multiprocessors; a part may be short of
    // them.
    slice(plan, shape.batch, larger(1, gpu.multiprocessors * 7 / 8 / plan.unit_blocks));
    plan.fits = plan.rows() == samples_of_matrix &&
                persistent_shared_bytes(plan) <= gpu.shared_bytes_of_block;
    return plan;
}

}  // namespace

RecurrencePlan plan_recurrence(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                               const RecurrenceGpu& gpu) {
    RecurrencePlan best = plan_in_clusters(shape, element_bytes, pass, gpu);
    if (best.fits) return best;
    // All blocks run at once, one to a multiprocessor: they wait for each other. What a block reads
    // in a step grows with its rows of samples, so as many slices of the batch as there is room
    // for; of equal ones that with the smaller blocks, whose work is spread wider.
    const bool may_be_small = pass == Pass::forward && shape.gates() == 4;
    for (int units = may_be_small ? 8 : 16; units <= 16; units *= 2) {
        RecurrencePlan plan = plan_of_units(shape, element_bytes, pass, units);
        const int64_t most_slices = gpu.multiprocessors / plan.unit_blocks;
        if (most_slices == 0) continue;
        slice(plan, shape.batch, most_slices);
        plan.fits = plan.rounds <= most_rounds &&
                    persistent_shared_bytes(plan) <= gpu.shared_bytes_of_block;
        if (plan.fits && (!best.fits || plan.rows() < best.rows())) best = plan;
    }
    return best;
}

}  // namespace seqkernels::cuda
