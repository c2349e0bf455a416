// Which kernel computes a recurrence, and how one that stays for the whole sequence cuts it into
// blocks: one pure function of shape and GPU.
#pragma once

#include <cstdint>
#include <string>

#include "../core/range.h"
#include "../core/recurrence.h"

namespace seqkernels::cuda {

constexpr int product_warps = 8;      // of a block: they multiply
constexpr int finishing_warps = 4;    // and these make states of the sums
constexpr int rows_of_matrix = 16;    // gates' rows of weights in a product of the matrix units
constexpr int samples_of_matrix = 8;  // samples in one
constexpr int depth_of_group = 32;    // of a product's depth that a warp takes at a time
constexpr int most_sample_tiles = 2;  // such eights of samples that a product is made of at once
constexpr int most_rounds = 4;        // such products of a step
constexpr int exchange_slots = 64;    // steps whose states are kept
constexpr int units_of_cluster_block = 16;
constexpr int most_units_of_cluster = 256;

enum class Pass { forward, backward };

// simple: a step at a time as the definition reads, for every type; the oracle of the others.
// Two stay for the whole sequence: in cluster, blocks exchange states through shared memory, in
// persistent through global memory. fastest: the first of these two that fits, else simple.
enum class RecurrenceKernel { simple, fastest, cluster, persistent };

// The numbers that the matrix units multiply for one of a type: float32 as the sum of three of 8
// bits each, which hold all of its 24.
constexpr int planes_of(int64_t element_bytes) { return element_bytes == 4 ? 3 : 1; }

struct RecurrencePlan {
    bool fits;            // otherwise no kernel stays
    int units;            // hidden units of a block: 8 or 16
    int gates;            // whose weights of those units a block has: all forward, 1 backward
    int planes;           // of a number
    int depths;           // parts of a product's depth, each of all units: 1 forward, G backward
    int64_t unit_blocks;  // blocks of a slice
    int sample_tiles;     // eights of samples of a round
    int64_t rounds;       // of a step
    int64_t slices;       // of the batch, which know nothing of each other
    int64_t slots;        // of the exchange through memory
    bool in_cluster;      // the blocks of a slice are one, and exchange through shared memory

    constexpr int row_tiles() const { return units * gates / rows_of_matrix; }
    constexpr int64_t units_padded() const { return unit_blocks * units; }
    constexpr int64_t depth() const { return depths * units_padded(); }
    // A warp has every eighth group.
    constexpr int64_t groups() const { return divide_rounding_up(depth(), depth_of_group); }
    constexpr int64_t groups_of_warp() const { return divide_rounding_up(groups(), product_warps); }
    constexpr int64_t row_elements() const { return groups() * depth_of_group; }
    // A row in a cluster's exchange, an odd number of groups long: lanes read different banks.
    constexpr int cluster_row_elements() const {
        return (static_cast<int>(groups()) | 1) * depth_of_group;
    }
    constexpr int64_t rows() const { return rounds * sample_tiles * samples_of_matrix; }
    constexpr int64_t blocks() const { return unit_blocks * slices; }
};

// Groups of a warp whose weights lie in its registers: 8 registers for each row tile and plane, 96
// at most. The rest lie in shared memory.
constexpr int groups_in_registers(int row_tiles, int planes) { return 12 / (row_tiles * planes); }

constexpr int weight_bytes_of_group(int row_tiles, int planes) {
    return row_tiles * planes * 2 * 32 * 16;
}

// A warp's partial sums of a round: of each sample all units, 4 gates of a unit side by side;
// single ones are padded so that the lanes of a warp write to different banks.
constexpr int sums_of_sample(int units, int gates) { return gates == 4 ? units * 4 : units + 4; }
constexpr int64_t sums_bytes(int units, int gates, int sample_tiles) {
    return int64_t{product_warps} * sample_tiles * samples_of_matrix *
           sums_of_sample(units, gates) * 4;
}

// Shared memory of a block: two rounds' partial sums, weights beyond the registers', and in a
// cluster two turns' rows of the exchange, with their mailboxes.
constexpr int64_t exchange_offset(const RecurrencePlan& plan) {
    const int64_t beyond =
        larger(0, plan.groups_of_warp() - groups_in_registers(plan.row_tiles(), plan.planes));
    return 2 * sums_bytes(plan.units, plan.gates, plan.sample_tiles) +
           beyond * product_warps * weight_bytes_of_group(plan.row_tiles(), plan.planes);
}
constexpr int64_t persistent_shared_bytes(const RecurrencePlan& plan) {
    const int64_t exchange = 2 * plan.rows() * plan.cluster_row_elements() * 2 + 2 * 8;
    return exchange_offset(plan) + (plan.in_cluster ? exchange : 0);
}

struct RecurrenceGpu {
    bool lets_blocks_cooperate;
    int multiprocessors;
    int64_t shared_bytes_of_block;
    int largest_cluster;  // blocks of the kernels with clusters that share one; 0: no such kernels
};

struct RecurrenceChoice {
    RecurrencePlan plan;
    std::string refusal;  // where it does not fit: "expected ..., got ..."
};

// What no kernel that stays computes on any GPU: "expected ..., got ..."; else empty.
std::string refusal_of_shape(const RecurrenceShape& shape, int64_t element_bytes);

RecurrenceChoice plan_recurrence(const RecurrenceShape& shape, int64_t element_bytes, Pass pass,
                                 RecurrenceKernel kernel, const RecurrenceGpu& gpu);

}  // namespace seqkernels::cuda
