// The input of windows that are multiplied together (winograd_plan.h): positions of a sample, zeros
// beyond it, judged and made into planes (winograd_planes.h). It is read where it lies if no plane
// but those that are made is multiplied, else copied into plane 0.
//
// Scratch, owned by the object: C zeros, read in place of padding. Given to it: the planes, and a
// vector for each position.
#pragma once

#include <cstdint>

#include "../core/scratch.h"
#include "convolution_input.h"
#include "product.h"
#include "winograd_plan.h"
#include "winograd_planes.h"

namespace seqkernels {

// What copies the input, and what stretch_rule is to know.
template <class VectorType>
struct WinogradProduct {
    using Vector = VectorType;
    using T = typename Vector::Element;
    using Left = T;
    static constexpr int vectors = Tile<Vector>::vectors;
    static constexpr int left_planes = 1;  // as they are copied
    static constexpr bool is_partial = true;
    static constexpr int64_t cache_bytes = 1 << 20;

    struct Session {};

    // Numbers are judged when they are there.
    struct Magnitude {};

    template <class Number>
    static void store_left(const Number* numbers, int64_t count, int64_t room, Left* target,
                           int64_t, Magnitude&) {
        for (int64_t i = 0; i < count; i += Vector::width) {
            store_up_to(load_up_to<Vector>(numbers + i, count - i), target + i, room - i);
        }
    }
};

template <class Vector>
class WinogradInput {
    using T = typename Vector::Element;

 public:
    // call: its shape, input and lengths are read.
    WinogradInput(const ConvolutionForward<T>& call, const WinogradPlan& plan)
        : call_(call),
          plan_(plan),
          direct_(!plan.reads_numbers() && is_read_in_place<T>(call.shape, call.input)),
          zeros_(direct_ ? call.shape.channels : 0) {
        for (int64_t c = 0; direct_ && c < call.shape.channels; ++c) zeros_.data()[c] = 0;
    }

    // Makes the planes of some positions, `plane` numbers from one to the next; returns whether
    // they can be multiplied together.
    bool make(int64_t sample, Range positions, T* numbers, int64_t plane, Vector* largest) const {
        const WinogradPlanes<Vector> planes(plan_, positions.count(), plane);
        return with_rows(sample, positions, numbers, plane, [&](const auto& row) {
            const bool are_alike = planes.are_alike(row, largest);
            planes.make(row, numbers);
            return are_alike;
        });
    }

    // The same of four windows of three taps, laid out as WinogradPlanes says. numbers: room for
    // plane 0.
    template <class FirstOf, class PlaceOf>
    bool make_four_of_three_taps(int64_t sample, Range positions, T* numbers, Vector* largest,
                                 const FirstOf& first_of, const PlaceOf& place_of) const {
        const WinogradPlanes<Vector> planes(plan_, positions.count(), 0);
        return with_rows(sample, positions, numbers, 0, [&](const auto& row) {
            const bool are_alike = planes.are_alike(row, largest);
            planes.make_four_of_three_taps(row, first_of, place_of);
            return are_alike;
        });
    }

 private:
    // function(row), row(i) being the channels of the i'th position.
    template <class Function>
    bool with_rows(int64_t sample, Range positions, T* numbers, int64_t plane,
                   Function&& function) const {
        if (direct_) {
            const int64_t length = sample_length(call_.shape, call_.lengths, sample);
            const int64_t stride = call_.input.stride_length;
            const T* const first =
                static_cast<const T*>(call_.input.numbers.data) + sample * call_.input.stride_batch;
            return function([&](int64_t place) {
                const int64_t position = positions.begin + place;
                const bool is_real = position >= 0 && position < length;
                return is_real ? first + position * stride : zeros_.data();
            });
        }
        typename WinogradProduct<Vector>::Magnitude magnitude;
        copy_positions<Vector, WinogradProduct<Vector>>(call_, sample, positions, plan_.pitch(), 0,
                                                        numbers, plane, magnitude);
        return function([&](int64_t place) { return numbers + place * plan_.pitch(); });
    }

    const ConvolutionForward<T>& call_;
    const WinogradPlan& plan_;
    const bool direct_;
    const Scratch<T> zeros_;
};

}  // namespace seqkernels
