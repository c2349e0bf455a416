// What a CPU kernel is told besides the tensors, as Python gives it.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "cpu/kernels.h"
#include "expect.h"

namespace seqkernels {

// Threads, and how float32 is multiplied: "highest", "high" or "medium".
using CpuWhere = std::pair<int, std::string>;

struct CpuPlace {
    int threads;
    FloatPrecision precision;
};

inline CpuPlace place_of(const CpuWhere& where) {
    const auto& [threads, precision] = where;
    expect_at_least("threads", threads, 1);
    if (precision == "highest") return {threads, FloatPrecision::highest};
    if (precision == "high") return {threads, FloatPrecision::high};
    if (precision == "medium") return {threads, FloatPrecision::medium};
    throw std::invalid_argument("precision: expected one of highest, high, medium, got '" +
                                precision + "'");
}

}  // namespace seqkernels
