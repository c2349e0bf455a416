// Both directions of a recurrent layer: two recurrences over the same sequences, which do not need
// each other.
//
// Side by side on a thread each, no step has to wait for another thread; one after the other, each
// on all threads, a thread has half of a direction's recurrent weights at a time. Two threads are
// better side by side where a direction's weights stay in a core's own cache, and there are too few
// samples to share these out; more threads, it is supposed, get farther one after the other.
// Measured, two threads, layers of float32 LSTMs, us of both directions, one after the other / side
// by side (AMD family 26, 1 MiB of L2; at one hour and, when barriers took longer, at another):
//   N 1   T 25, H 64 56/50, 96/62       T 50, H 128 167/158, 275/183   H 192 325/287, 435/309
//   T 50, H 128   N 2 213/199, 326/226   N 4 323/307, 459/356           N 8 562/550, 796/652
// Beyond, one direction alone on two threads / on one: N 1, H 256 236/489, N 16, H 128 503/964.
#pragma once

#include <exception>

#include "../core/parallel.h"
#include "../core/recurrence.h"

namespace seqkernels {

inline bool runs_side_by_side(const RecurrenceShape& shape, int64_t element_bytes, int threads) {
    constexpr int64_t most_weight_bytes = 768 << 10;
    constexpr int64_t most_samples = 12;
    const int64_t weight_bytes = shape.gates() * shape.hidden * shape.hidden * element_bytes;
    return (threads == 2 || threads == 3) && shape.batch < most_samples &&
           weight_bytes <= most_weight_bytes;
}

// first(threads) and second(threads) run one direction each.
template <class First, class Second>
void run_directions(bool side_by_side, const First& first, const Second& second, int threads) {
    if (!side_by_side) {
        first(threads);
        second(threads);
        return;
    }
    std::exception_ptr failures[2];
    run_parallel(2, [&](int thread, int granted) {
        for (int direction = thread; direction < 2; direction += granted) {
            try {
                direction == 0 ? first(1) : second(1);
            } catch (...) {
                failures[direction] = std::current_exception();
            }
        }
    });
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

}  // namespace seqkernels
