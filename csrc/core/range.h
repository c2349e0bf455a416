// Ranges of indices and the arithmetic of cutting them.
#pragma once

#include <cstdint>

namespace seqkernels {

static constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
static constexpr int64_t divide_rounding_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
    int64_t begin;
    int64_t end;

    constexpr bool has(int64_t i) const { return begin <= i && i < end; }
    constexpr int64_t count() const { return end > begin ? end - begin : 0; }
};

// The part of [0, count) that falls to one of `parts`, in multiples of `unit`.
static constexpr Range part_of(int64_t count, int64_t unit, int64_t part, int64_t parts) {
    const int64_t units = divide_rounding_up(count, unit);
    return {smaller(count, units * part / parts * unit),
            smaller(count, units * (part + 1) / parts * unit)};
}

}  // namespace seqkernels
