// The planes that windows multiplied together read (winograd_plan.h), of one segment of a sample.
//
// Cost: two loads, an addition and a store for each number of a plane, a load for each number of
// the input to judge it. Of three taps, for the same channel of a group, 6 loads, 10 additions and
// 7 stores, which L2 takes one in four cycles of (C 300, AMD family 26); so convolutions take 5 %
// less time than with planes made one by one from a copy of the input (N 50, L 20 and 56; N 64, L
// 512). Limit: stores to L2.
#pragma once

#include <cstdint>
#include <limits>

#include "../core/range.h"
#include "product.h"
#include "winograd_plan.h"

namespace seqkernels {

template <class Vector>
inline bool has_any(typename Vector::Mask mask) {
    const auto not_a_number = std::numeric_limits<typename Vector::Element>::quiet_NaN();
    return has_nan(select(mask, Vector::broadcast(not_a_number), Vector::broadcast(0)));
}

// Whether magnitudes are below 2^50, of which sums and differences are finite.
template <class Vector>
inline bool are_plain(Vector magnitudes) {
    const Vector least = Vector::broadcast(static_cast<typename Vector::Element>(0x1p50));
    return !has_nan(magnitudes) && !has_any<Vector>(at_most(least, magnitudes));
}

template <class Vector>
inline typename Vector::Element largest_lane(Vector vector) {
    typename Vector::Element lanes[Vector::width];
    vector.store(lanes);
    auto most = lanes[0];
    for (const auto lane : lanes) most = lane > most ? lane : most;
    return most;
}

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

    // Whether all numbers are plain, and no group of windows reads a position whose largest number
    // is more than 64 times that of another which is not all zeros: windows would lose digits
    // beside numbers that they do not read.
    //   row(i): the channels of position i
    //   largest: scratch, a vector for each position
    template <class RowOf>
    bool are_alike(const RowOf& row, Vector* largest) const {
        Vector of_all = Vector::broadcast(0);
        for (int64_t position = 0; position < positions_; ++position) {
            largest[position] = largest_of(row(position));
            of_all = larger_magnitude(largest[position], of_all);
        }
        if (!are_plain(of_all)) return false;
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

    // The planes that are read, from rows as above. numbers: plane 0, which holds the rows, unless
    // none but the others are read; the others follow.
    template <class RowOf>
    void make(const RowOf& row, T* numbers) const {
        if (plan_.reads_numbers()) {
            make_from_plane(numbers);
        } else {
            const auto first_of = [&](int part, int64_t group) {
                const WinogradPlan::Term& term = plan_.term(part);  // each part has one
                return numbers + term.plane * plane_numbers_ +
                       (group * together_ + term.position) * pitch_;
            };
            const auto place_of = [](int64_t, int64_t channel) { return channel; };
            make_four_of_three_taps(row, first_of, place_of);
        }
    }

    // The same of four windows of three taps, laid out otherwise: vectors of channels of a part's
    // plane go to first_of(part, group) + place_of(group, channel).
    template <class RowOf, class FirstOf, class PlaceOf>
    void make_four_of_three_taps(const RowOf& row, const FirstOf& first_of,
                                 const PlaceOf& place_of) const {
        using Plan = WinogradPlan;
        const int64_t groups = (positions_ - plan_.taps() + 1) / together_;
        for (int64_t group = 0; group < groups; ++group) {
            const auto target_of = [&](int part) { return first_of(part, group); };
            T *const a = target_of(Plan::a), *const b = target_of(Plan::b),
                     *const c = target_of(Plan::c), *const d = target_of(Plan::d),
                     *const e = target_of(Plan::e), *const first = target_of(Plan::first_of_four),
                     *const last = target_of(Plan::last_of_four);
            const auto row_of = [&](int64_t i) { return row(group * together_ + i); };
            const T *const row0 = row_of(0), *const row1 = row_of(1), *const row2 = row_of(2),
                           *const row3 = row_of(3), *const row4 = row_of(4),
                           *const row5 = row_of(5);
            const auto make = [=](int64_t i, int64_t count) __attribute__((always_inline)) {
                const auto load = [=](const T* from) {
                    return load_up_to<Vector>(from + i, count);
                };
                const int64_t place = place_of(group, i);
                const Vector x1 = load(row1), x2 = load(row2), x3 = load(row3), x4 = load(row4);
                const Vector odd_sum = x3 + x1, even_sum = x4 + x2;
                const Vector odd_difference = x3 - x1, even_difference = x4 - x2;
                (even_sum + odd_sum).store(a + place);
                (even_sum - odd_sum).store(b + place);
                (even_difference + odd_difference).store(c + place);
                (even_difference - odd_difference).store(d + place);
                odd_difference.store(e + place);
                (x4 - load(row0)).store(first + place);
                (load(row5) - x1).store(last + place);
            };
            const int64_t whole = channels_ / Vector::width * Vector::width;
            for (int64_t i = 0; i < whole; i += Vector::width) make(i, Vector::width);
            if (whole < channels_) make(whole, channels_ - whole);
        }
    }

 private:
    // Position after position, each plane's as soon as what it is made from is there.
    void make_from_plane(T* numbers) const {
        WinogradPlan::Plane planes[WinogradPlan::most_planes];
        const int count = plan_.plane_count();
        for (int p = 1; p < count; ++p) planes[p] = plan_.plane(p);
        for (int64_t now = 0; now < positions_; ++now) {
            for (int p = 1; p < count; ++p) {
                const WinogradPlan::Plane& plane = planes[p];
                const int64_t position = now - plane.lag;
                if (position < 0 || position >= positions_ - plane.reach) continue;
                if ((plane.wanted >> (position & (together_ - 1)) & 1) == 0) continue;
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

    // Whether a position's numbers are all below a 64th of `most`, and not all zeros.
    static bool has_small(Range positions, const Vector* largest, T most) {
        const Vector least = Vector::broadcast(most * static_cast<T>(0x1p-6));
        const Vector zero = Vector::broadcast(0);
        for (int64_t position = positions.begin; position < positions.end; ++position) {
            const Vector of_position = largest[position];
            if (!has_any<Vector>(at_most(least, of_position)) &&
                has_any<Vector>(exceeds(of_position, zero))) {
                return true;
            }
        }
        return false;
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
                largest[i] = larger_magnitude(some, largest[i]);
            }
        }
        for (; c < channels_; c += Vector::width) {
            largest[0] =
                larger_magnitude(load_up_to<Vector>(numbers + c, channels_ - c), largest[0]);
        }
        return larger_magnitude(larger_magnitude(largest[0], largest[1]),
                                larger_magnitude(largest[2], largest[3]));
    }

    const WinogradPlan& plan_;
    const int64_t positions_;
    const int64_t plane_numbers_;
    const int64_t channels_;
    const int64_t pitch_;
    const int64_t together_;
};

}  // namespace seqkernels
