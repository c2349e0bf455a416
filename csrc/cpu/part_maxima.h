// The maxima over time of samples that are cut: those of each part, and of all parts together.
//
// Scratch, owned by the call: two numbers for each part and filter, whole vectors of them.
#pragma once

#include <cstdint>

#include "../core/scratch.h"
#include "pooled_output.h"
#include "product.h"
#include "window_stretches.h"

namespace seqkernels {

template <class Vector>
class PartMaxima {
    using T = typename Vector::Element;

 public:
    // vectors: of filters
    PartMaxima(int64_t parts, int64_t vectors)
        : line_(vectors * Vector::width), numbers_(checked_product({parts, 2, line_})) {}

    // One vector of a part's maxima, and their windows.
    void put(int64_t part, int64_t filter, Vector best, Vector winner) const {
        best.store(maxima_of(part) + filter);
        winner.store(windows_of(part) + filter);
    }

    // Finishes the samples whose first parts are among these segments.
    void join(const WindowStretches& stretches, Range segments, int64_t filters,
              const PooledOutput<Vector>& pooled) const {
        for (int64_t i = segments.begin; i < segments.end; ++i) {
            const WindowSegment& first = stretches.segment(i);
            if (first.part < 0 || first.windows.begin > 0) continue;
            int64_t end = i;
            while (end < stretches.segment_count() &&
                   stretches.segment(end).sample == first.sample) {
                ++end;
            }
            for (int64_t filter = 0; filter < filters; filter += Vector::width) {
                Vector best = Vector::load(maxima_of(first.part) + filter);
                Vector winner = Vector::load(windows_of(first.part) + filter);
                const auto later = [&](int64_t row) { return first.part + row + 1; };
                PooledOutput<Vector>::template take<1>(
                    end - i - 1, 1,
                    [&](int64_t row, int64_t) {
                        return Vector::load(maxima_of(later(row)) + filter);
                    },
                    [&](int64_t row, int64_t) {
                        return Vector::load(windows_of(later(row)) + filter);
                    },
                    &best, &winner);
                pooled.finish(first.sample, 0, filter, best, winner);
            }
        }
    }

 private:
    T* maxima_of(int64_t part) const { return numbers_.data() + part * 2 * line_; }
    T* windows_of(int64_t part) const { return maxima_of(part) + line_; }

    const int64_t line_;
    const Scratch<T> numbers_;
};

}  // namespace seqkernels
