// A filter's numbers in two orders: channel after channel, (C, k), as a weight and its gradient
// lie, and tap after tap, (k, C), as the windows of a sequence of (L, C) meet them.
//
// Cost: a load and a store for each number, of several at once where the taps are few.
#pragma once

#include <cstdint>
#include <type_traits>

#include "product.h"

namespace seqkernels {

// Numbers of taps that loops are unrolled for.
constexpr int most_unrolled_taps = 7;

// Calls function(taps) with a constant where there are few.
template <class Function>
inline void with_taps(int64_t taps, Function&& function) {
    if (taps > most_unrolled_taps) return function(taps);
    with_constant<most_unrolled_taps>(taps, function);
}

// target[tap * stride_tap + channel] = source[channel * taps + tap]
template <class Vector, class Number>
inline void by_taps(const Number* source, int64_t taps, int64_t channels,
                    typename Vector::Element* target, int64_t stride_tap) {
    with_taps(taps, [&](auto count) {
        for (int64_t channel = 0; channel < channels; ++channel) {
            for (int64_t tap = 0; tap < count; ++tap) {
                target[tap * stride_tap + channel] = widen(source[channel * count + tap]);
            }
        }
    });
}

// target[channel * taps + tap] = source[tap * stride_tap + channel], rounded to the target's type.
template <class Vector, class Number>
inline void by_channels(const typename Vector::Element* source, int64_t stride_tap, int64_t taps,
                        int64_t channels, Number* target) {
    using T = typename Vector::Element;
    const auto order = [=](const T* from, int64_t taps_of_them, int64_t channels_of_them, T* to) {
        with_taps(taps_of_them, [&](auto count) {
            for (int64_t channel = 0; channel < channels_of_them; ++channel) {
                for (int64_t tap = 0; tap < count; ++tap) {
                    to[channel * count + tap] = from[tap * stride_tap + channel];
                }
            }
        });
    };
    if constexpr (std::is_same_v<Number, T>) {
        order(source, taps, channels, target);
    } else {
        // Some channels, of all taps, or some taps of one channel.
        constexpr int64_t at_once = 1024;
        T ordered[at_once];
        const int64_t most_taps = smaller(taps, at_once);
        const int64_t most_channels = at_once / larger(1, most_taps);
        for (int64_t channel = 0; channel < channels; channel += most_channels) {
            const int64_t channels_here = smaller(most_channels, channels - channel);
            for (int64_t tap = 0; tap < taps; tap += most_taps) {
                const int64_t taps_here = smaller(most_taps, taps - tap);
                order(source + tap * stride_tap + channel, taps_here, channels_here, ordered);
                convert_numbers<Vector>(ordered, target + channel * taps + tap,
                                        taps_here * channels_here);
            }
        }
    }
}

}  // namespace seqkernels
