// The last filters of windows multiplied together (winograd_windows.h), where there are four or
// fewer beyond whole vectors: as panels they would cost a whole one. Their weights lie channel
// after channel, and vectors of channels are multiplied with those of a window (unpacked_rows.h);
// each lane sums every width'th product, and then the lanes are summed.
//
// Given to it: the packed weights, no more than those of a vector of filters would be, and room for
// a filter's numbers, tap after tap.
//
// Cost: the multiply-adds of four filters, and some 15 operations to sum the lanes of four sums.
// Limit: the multiply-add rate. Measured (AMD family 26, two threads, AVX-512; AVX2): 50 sentences
// of 56 words, C 300, F 100 4 % less time; 5 %. N 16, L 128, F 34 and 36, k 5 6 and 8 %; 10 and 12.
// Tried without gain: up to eight filters (AVX-512), or C 64.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "tap_order.h"
#include "unpacked_rows.h"
#include "winograd_plan.h"
#include "winograd_planes.h"

namespace seqkernels {

template <class Vector>
class WinogradRest {
    using T = typename Vector::Element;

 public:
    WinogradRest(const WinogradPlan& plan, int64_t filters)
        : plan_(plan), count_(count_of(plan.channels(), filters)), first_(filters - count_) {}

    int64_t count() const { return count_; }
    int64_t packed_elements() const {
        return checked_product({plan_.term_count(), count_, plan_.pitch()});
    }
    int64_t scratch_elements() const {
        return count_ == 0 ? 0 : checked_product({plan_.taps(), plan_.pitch()});
    }

    // target[((t * count + filter) * pitch) + channel]: each filter's weights of term t. Returns
    // whether all numbers can be multiplied.
    bool pack(const ConvolutionWeight& weight, T* target, T* scratch) const {
        const int64_t pitch = plan_.pitch(), taps = plan_.taps();
        bool can_be_multiplied = true;
        for (int64_t filter = 0; filter < count_; ++filter) {
            filter_by_taps<Vector>(weight, first_ + filter, taps, plan_.channels(), scratch, pitch);
            Vector largest = Vector::broadcast(0);
            for (int64_t i = 0; i < taps * pitch; i += Vector::width) {
                largest = larger_magnitude(Vector::load(scratch + i), largest);
            }
            can_be_multiplied =
                can_be_multiplied && are_plain(largest) && !is_tiny(largest_lane(largest));
            for (int t = 0; t < plan_.term_count(); ++t) {
                add_up(plan_.term(t).shares, scratch, target + (t * count_ + filter) * pitch);
            }
        }
        return can_be_multiplied;
    }

    // sums[m], lane f += the product of row m, a plane's channels, with filter f's weights of term
    // t, for up to a tile of rows. Lanes beyond the filters hold anything.
    void multiply(Vector* sums, int tile, const T* const* rows, const T* packed, int t) const {
        constexpr int most_rows = unpacked_tile_rows<Vector>;
        constexpr int vectors = Vector::width / summed_lanes<Vector>;
        const int64_t pitch = plan_.pitch();
        // Planes hold zeros up to a whole vector.
        const int64_t depth = divide_rounding_up(plan_.channels(), Vector::width) * Vector::width;
        const Matrix weights{packed + t * count_ * pitch, pitch, 1};
        const Term<T> terms[most_terms] = {{rows, weights, depth}, {nullptr, weights, 0}};
        for_each_tile(tile, most_rows, [&](int64_t first, int some) {
            Vector fours[most_rows * vectors];
            for (Vector& zero : fours) zero = Vector::broadcast(0);
            with_constant<most_rows>(some, [&](auto m) {
                multiply_rows<Vector, m, most_filters, T>(fours, terms, first, 0, count_);
            });
            for (int m = 0; m < some; ++m) {
                sums[first + m] = sums[first + m] + Vector::sum_of_fours(fours + m * vectors);
            }
        });
    }

 private:
    static constexpr int most_filters = 4;

    static int64_t count_of(int64_t channels, int64_t filters) {
        constexpr int64_t least_channels = 8 * Vector::width;  // fewer are not worth summing lanes
        const int64_t beyond = filters % Vector::width;
        return channels >= least_channels && beyond <= most_filters ? beyond : 0;
    }

    void add_up(const WinogradPlan::Shares& shares, const T* taps, T* target) const {
        for (int64_t c = 0; c < plan_.pitch(); c += Vector::width) {
            Vector sum = Vector::broadcast(0);
            for (int s = 0; s < shares.count; ++s) {
                const Vector of_tap = Vector::load(taps + shares.of[s].tap * plan_.pitch() + c);
                sum = multiply_add(Vector::broadcast(shares.of[s].scale), of_tap, sum);
            }
            sum.store(target + c);
        }
    }

    const WinogradPlan& plan_;
    const int64_t count_;
    const int64_t first_;
};

}  // namespace seqkernels
