// A filter's numbers in two orders: channel after channel, (C, k), as a weight and its gradient
// lie, and tap after tap, (k, C), as the windows of a sequence of (L, C) meet them.
//
// Cost: where the taps are few and vectors interleave, of k vectors k loads, k stores and k
// ceil(k/2) permutations; else a load and a store for each number. Measured, us for 50 filters,
// with permutations after without (family 6, model 207):
//   taps               2         3         4         5         6         7
//   by taps, C 300   7.2 7.4  11  11    14  13    40  20    49  24    59  28
//   by taps, C 128   3.3 1.6   4.7 2.4   7.6 3.1  17   4.0  21  12    23  13
//   by channels, 300 4.2 3.8   6.7 5.6  11  11    18   9.3  24  12    23  16
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels.h"
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

// Up to a vector's worth of channels, each with all of its taps: vector by vector a tap, zeros
// beyond the last channel.
template <int taps, class Vector, class Number>
[[gnu::always_inline]] inline void load_by_taps(const Number* source, int64_t channels,
                                                Vector (&vectors)[taps]) {
    if (channels >= Vector::width) {
        for (int i = 0; i < taps; ++i) {
            vectors[i] = load_up_to<Vector>(source + i * Vector::width, Vector::width);
        }
    } else {
        for (int i = 0; i < taps; ++i) {
            const int64_t first = i * Vector::width;
            vectors[i] = load_up_to<Vector>(source + first, channels * taps - first);
        }
    }
    if constexpr (taps > 1) Vector::deinterleave(vectors);
}

// by_taps and by_channels by whole vectors.
template <int taps, class Vector, class Number>
inline void vectors_by_taps(const Number* source, int64_t channels,
                            typename Vector::Element* target, int64_t stride_tap) {
    for (int64_t channel = 0; channel < channels; channel += Vector::width) {
        const int64_t here = smaller(Vector::width, channels - channel);
        Vector vectors[taps];
        load_by_taps(source + channel * taps, here, vectors);
        for (int64_t tap = 0; tap < taps; ++tap) {
            store_up_to(vectors[tap], target + tap * stride_tap + channel, here);
        }
    }
}
template <int taps, class Vector>
inline void vectors_by_channels(const typename Vector::Element* source, int64_t stride_tap,
                                int64_t channels, typename Vector::Element* target) {
    for (int64_t channel = 0; channel < channels; channel += Vector::width) {
        const int64_t here = smaller(Vector::width, channels - channel);
        Vector vectors[taps];
        for (int64_t tap = 0; tap < taps; ++tap) {
            vectors[tap] = load_up_to<Vector>(source + tap * stride_tap + channel, here);
        }
        Vector::interleave(vectors);
        for (int64_t i = 0; i < taps; ++i) {
            const int64_t first = i * Vector::width;
            store_up_to(vectors[i], target + channel * taps + first, here * taps - first);
        }
    }
}
// Whether a number of taps, a constant or not, goes so.
template <class Vector>
constexpr bool goes_by_vectors(int64_t) {
    return false;
}
template <class Vector, int taps>
constexpr bool goes_by_vectors(std::integral_constant<int, taps>) {
    return Vector::can_interleave && taps > 1;
}

// target[tap * stride_tap + channel] = source[channel * taps + tap]
template <class Vector, class Number>
inline void by_taps(const Number* source, int64_t taps, int64_t channels,
                    typename Vector::Element* target, int64_t stride_tap) {
    with_taps(taps, [&](auto count) {
        if constexpr (goes_by_vectors<Vector>(decltype(count)())) {
            vectors_by_taps<count, Vector>(source, channels, target, stride_tap);
        } else {
            for (int64_t channel = 0; channel < channels; ++channel) {
                for (int64_t tap = 0; tap < count; ++tap) {
                    target[tap * stride_tap + channel] = widen(source[channel * count + tap]);
                }
            }
        }
    });
}

// A filter of any strides, its first number at `filter`, in that order.
template <class Vector, class Number>
inline void filter_by_taps(const ConvolutionWeight& weight, const Number* filter, int64_t taps,
                           int64_t channels, typename Vector::Element* target, int64_t stride_tap) {
    if (weight.stride_tap == 1 && weight.stride_channel == taps) {
        return by_taps<Vector>(filter, taps, channels, target, stride_tap);
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t channel = 0; channel < channels; ++channel) {
            target[tap * stride_tap + channel] =
                widen(filter[channel * weight.stride_channel + tap * weight.stride_tap]);
        }
    }
}

// target[channel * taps + tap] = source[tap * stride_tap + channel], rounded to the target's type.
template <class Vector, class Number>
inline void by_channels(const typename Vector::Element* source, int64_t stride_tap, int64_t taps,
                        int64_t channels, Number* target) {
    using T = typename Vector::Element;
    const auto order = [=](const T* from, int64_t taps_of_them, int64_t channels_of_them, T* to) {
        with_taps(taps_of_them, [&](auto count) {
            if constexpr (goes_by_vectors<Vector>(decltype(count)())) {
                vectors_by_channels<count, Vector>(from, stride_tap, channels_of_them, to);
            } else {
                for (int64_t channel = 0; channel < channels_of_them; ++channel) {
                    for (int64_t tap = 0; tap < count; ++tap) {
                        to[channel * count + tap] = from[tap * stride_tap + channel];
                    }
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
