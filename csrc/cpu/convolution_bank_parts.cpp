#include "convolution_bank_parts.h"

#include <algorithm>
#include <numeric>

#include "../core/parallel.h"

namespace seqkernels {

ConvolutionBankParts::ConvolutionBankParts(int threads) : threads_(threads) {}

ConvolutionBankParts::~ConvolutionBankParts() = default;

bool ConvolutionBankParts::takes(const ConvolutionShape& shape, bool has_winners) {
    constexpr int64_t most_windows = 512;
    const bool are_few = shape.windows(shape.length) <= most_windows / larger(1, shape.batch);
    return are_few && (!has_winners || shape.batch == 1);
}

void ConvolutionBankParts::add(int64_t call, int64_t filters, int64_t vector_filters,
                               int64_t panel_vectors, int64_t cost) {
    const int64_t panel_filters = panel_vectors * vector_filters;
    const int64_t panels = divide_rounding_up(filters, panel_filters);
    const int64_t parts = smaller(panels, threads_);
    for (int64_t i = 0; i < parts; ++i) {
        const Range of_part = part_of(panels, 1, i, parts);
        const Range own{of_part.begin * panel_filters,
                        smaller(of_part.end * panel_filters, filters)};
        const int64_t vectors = divide_rounding_up(own.count(), vector_filters);
        parts_.push_back({call, own, cost * vectors, 0, false, nullptr});
    }
}

bool ConvolutionBankParts::share_out() {
    std::stable_sort(parts_.begin(), parts_.end(),
                     [](const Part& a, const Part& b) { return a.cost > b.cost; });
    std::vector<int64_t> costs(static_cast<std::size_t>(threads_));
    for (Part& part : parts_) {
        const auto least = std::min_element(costs.begin(), costs.end());
        part.thread = static_cast<int>(least - costs.begin());
        *least += part.cost;
    }
    // A trade: one after the other, the convolutions' own threads have 4 and 3 of 7 vectors to do.
    constexpr double most_uneven = 1.15;
    const auto all = std::accumulate(costs.begin(), costs.end(), int64_t{0});
    const auto most = *std::max_element(costs.begin(), costs.end());
    return static_cast<double>(most * threads_) <= most_uneven * static_cast<double>(all);
}

void ConvolutionBankParts::run(bool (*compute)(const void*, int64_t, Range), const void* context) {
    run_parallel(threads_, [&](int thread, int granted) {
        for (Part& part : parts_) {
            if (part.thread % granted != thread) continue;
            try {
                part.is_computed = compute(context, part.call, part.filters);
            } catch (...) {  // what a region runs must not throw
                part.error = std::current_exception();
            }
        }
    });
    for (const Part& part : parts_) {
        if (part.error) std::rethrow_exception(part.error);
    }
}

bool ConvolutionBankParts::is_computed(int64_t call) const {
    return std::all_of(parts_.begin(), parts_.end(),
                       [call](const Part& part) { return part.call != call || part.is_computed; });
}

}  // namespace seqkernels
