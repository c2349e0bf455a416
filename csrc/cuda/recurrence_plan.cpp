#include "recurrence_plan.h"

namespace seqkernels::cuda {
namespace {

std::string refusal(const std::string& expected, int64_t got) {
    return "expected " + expected + ", got " + std::to_string(got);
}

RecurrenceChoice refused(const std::string& expected, int64_t got) {
    return {{}, refusal(expected, got)};
}

std::string up_to(int64_t most, const std::string& of) {
    return "up to " + std::to_string(most) + " " + of;
}

// The plan, if a block has enough shared memory.
RecurrenceChoice chosen(RecurrencePlan plan, const RecurrenceGpu& gpu) {
    const int64_t bytes = persistent_shared_bytes(plan);
    if (bytes > gpu.shared_bytes_of_block) {
        return refused(up_to(gpu.shared_bytes_of_block, "bytes of shared memory a block"), bytes);
    }
    plan.fits = true;
    return {plan, ""};
}

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
RecurrenceChoice plan_in_clusters(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                                  const RecurrenceGpu& gpu) {
    if (element_bytes != 2) return refused("numbers of 2 bytes", element_bytes);
    if (gpu.largest_cluster == 0) return {{}, "expected a GPU with clusters, got one without"};
    if (shape.hidden > most_units_of_cluster) {
        return refused(up_to(most_units_of_cluster, "hidden units"), shape.hidden);
    }
    RecurrencePlan plan = plan_of_units(shape, element_bytes, pass, units_of_cluster_block);
    // A single block is none: launched without a cluster it may not send.
    if (plan.unit_blocks < 2) {
        return refused("more than " + std::to_string(plan.units) + " hidden units", shape.hidden);
    }
    if (plan.unit_blocks > gpu.largest_cluster) {
        return refused("clusters of " + up_to(gpu.largest_cluster, "blocks"), plan.unit_blocks);
    }
    plan.in_cluster = true;
    // A cluster is in one part of the GPU, of 16 or 18 multiprocessors; a part may be short of
    // them.
    const int64_t most_slices = larger(1, gpu.multiprocessors * 7 / 8 / plan.unit_blocks);
    slice(plan, shape.batch, most_slices);
    if (plan.rows() != samples_of_matrix) {
        return refused(up_to(most_slices * samples_of_matrix, "samples"), shape.batch);
    }
    return chosen(plan, gpu);
}

// All blocks run at once, one to a multiprocessor: they wait for each other.
RecurrenceChoice plan_in_memory(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                                int units, const RecurrenceGpu& gpu) {
    RecurrencePlan plan = plan_of_units(shape, element_bytes, pass, units);
    const int64_t most_slices = gpu.multiprocessors / plan.unit_blocks;
    if (most_slices == 0) {
        return refused(up_to(int64_t{gpu.multiprocessors} * units, "hidden units"), shape.hidden);
    }
    slice(plan, shape.batch, most_slices);
    if (plan.rounds > most_rounds) {
        constexpr int64_t most_rows = most_rounds * most_sample_tiles * samples_of_matrix;
        return refused(up_to(most_slices * most_rows, "samples"), shape.batch);
    }
    return chosen(plan, gpu);
}

// What a block reads in a step grows with its rows of samples, so as many slices of the batch as
// there is room for; of equal ones that with the smaller blocks, whose work is spread wider.
RecurrenceChoice plan_in_memory(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                                const RecurrenceGpu& gpu) {
    const RecurrenceChoice large = plan_in_memory(shape, element_bytes, pass, 16, gpu);
    if (pass == Pass::backward || shape.gates() != 4) return large;
    const RecurrenceChoice small = plan_in_memory(shape, element_bytes, pass, 8, gpu);
    const bool is_small =
        small.plan.fits && (!large.plan.fits || small.plan.rows() <= large.plan.rows());
    return is_small ? small : large;
}

}  // namespace

std::string refusal_of_shape(const RecurrenceShape& shape, int64_t element_bytes) {
    if (element_bytes > 4) return refusal("numbers of 2 or 4 bytes", element_bytes);
    if (shape.steps < 2) return refusal("2 steps or more", shape.steps);
    if (shape.batch == 0) return refusal("1 sample or more", shape.batch);
    if (shape.hidden == 0) return refusal("1 hidden unit or more", shape.hidden);
    return "";
}

RecurrenceChoice plan_recurrence(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                                 RecurrenceKernel kernel, const RecurrenceGpu& gpu) {
    if (kernel == RecurrenceKernel::simple) return {};
    const std::string refusal = refusal_of_shape(shape, element_bytes);
    if (!refusal.empty()) return {{}, refusal};
    if (!gpu.lets_blocks_cooperate) {
        return {{}, "expected a GPU that lets blocks cooperate, got one that does not"};
    }
    if (kernel != RecurrenceKernel::persistent) {
        const RecurrenceChoice choice = plan_in_clusters(shape, element_bytes, pass, gpu);
        if (choice.plan.fits || kernel == RecurrenceKernel::cluster) return choice;
    }
    return plan_in_memory(shape, element_bytes, pass, gpu);
}

}  // namespace seqkernels::cuda
