// The planes that windows multiplied together read (winograd_plan.h), of one segment of a sample.
//
// Cost: two loads, an addition and a store for each number of a plane, a load for each number of
// the input. Limit: L1 and L2.
#pragma once

#include <cstdint>
#include <limits>

#include "../core/range.h"
#include "winograd_plan.h"

namespace seqkernels {

template <class Vector>
class WinogradPlanes {
    using T = typename Vector::Element;

 public:
    // positions of the input, their channels plan.pitch() apart; plane_numbers: from a plane to the
    // next.
    WinogradPlanes(const WinogradPlan& plan, int64_t positions, int64_t plane_numbers)
        : plan_(plan),
          positions_(positions),
          plane_numbers_(plane_numbers),
          channels_(plan.channels()),
          pitch_(plan.pitch()),
          together_(plan.together()) {}

    // Whether no group of windows reads a position whose largest number is more than 64 times that
    // of another which is not all zeros: windows would lose digits beside numbers that they do not
    // read. largest: scratch, a vector for each position.
    bool are_alike(const T* numbers, Vector* largest) const {
        Vector of_all = Vector::broadcast(0);
        for (int64_t position = 0; position < positions_; ++position) {
            largest[position] = largest_of(numbers + position * pitch_);
            of_all = maximum(largest[position], of_all);
        }
        if (!has_small({0, positions_}, largest, largest_lane(of_all))) return true;
        const int64_t reach = together_ + plan_.taps() - 1;
        for (int64_t group = 0; group + reach <= positions_; group += together_) {
            Vector of_group = Vector::broadcast(0);
            for (int64_t i = group; i < group + reach; ++i) {
                of_group = maximum(largest[i], of_group);
            }
            if (has_small({group, group + reach}, largest, largest_lane(of_group))) return false;
        }
        return true;
    }

    // Position after position, each plane's as soon as what it is made from is there.
    void make(T* numbers) const {
        WinogradPlan::Plane planes[WinogradPlan::most_planes];
        const int count = plan_.plane_count();
        for (int p = 1; p < count; ++p) planes[p] = plan_.plane(p);
        for (int64_t now = 0; now < positions_; ++now) {
            for (int p = 1; p < count; ++p) {
                const WinogradPlan::Plane& plane = planes[p];
                const int64_t position = now - plane.lag;
                if (position < 0 || position >= positions_ - plane.reach) continue;
                if ((plane.wanted >> position % together_ & 1) == 0) continue;
                const T* from = numbers + plane.from * plane_numbers_ + position * pitch_;
                const T* later = from + plane.shift * pitch_;
                T* target = numbers + p * plane_numbers_ + position * pitch_;
                const auto make = [&](auto&& made_of) {
                    for (int64_t c = 0; c < channels_; c += Vector::width) {
                        made_of(Vector::load(later + c), Vector::load(from + c)).store(target + c);
                    }
                };
                if (plane.is_sum) {
                    make([](Vector a, Vector b) { return a + b; });
                } else {
                    make([](Vector a, Vector b) { return a - b; });
                }
            }
        }
    }

 private:
    // Whether a position's numbers are all below a 64th of `most`, and not all zeros.
    static bool has_small(Range positions, const Vector* largest, T most) {
        const Vector least = Vector::broadcast(most * static_cast<T>(0x1p-6));
        const Vector zero = Vector::broadcast(0);
        for (int64_t position = positions.begin; position < positions.end; ++position) {
            const Vector of_position = largest[position];
            if (!has_any(at_most(least, of_position)) && has_any(exceeds(of_position, zero))) {
                return true;
            }
        }
        return false;
    }

    static bool has_any(typename Vector::Mask mask) {
        const T not_a_number = std::numeric_limits<T>::quiet_NaN();
        return has_nan(select(mask, Vector::broadcast(not_a_number), Vector::broadcast(0)));
    }

    // The magnitudes of a position's numbers, the largest of each lane.
    Vector largest_of(const T* numbers) const {
        constexpr int at_once = 4;
        Vector largest[at_once];
        for (Vector& some : largest) some = Vector::broadcast(0);
        int64_t c = 0;
        for (; c + at_once * Vector::width <= channels_; c += at_once * Vector::width) {
            for (int i = 0; i < at_once; ++i) {
                const Vector some = Vector::load(numbers + c + i * Vector::width);
                largest[i] = maximum(absolute(some), largest[i]);
            }
        }
        for (; c < channels_; c += Vector::width) {
            largest[0] = maximum(absolute(Vector::load(numbers + c)), largest[0]);
        }
        return maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3]));
    }

    static T largest_lane(Vector vector) {
        T lanes[Vector::width];
        vector.store(lanes);
        T most = lanes[0];
        for (const T lane : lanes) most = lane > most ? lane : most;
        return most;
    }

    const WinogradPlan& plan_;
    const int64_t positions_;
    const int64_t plane_numbers_;
    const int64_t channels_;
    const int64_t pitch_;
    const int64_t together_;
};

}  // namespace seqkernels
