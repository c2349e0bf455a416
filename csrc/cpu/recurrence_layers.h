// A stack of recurrent layers, in one direction or in both.
//
// Side by side, each on one thread, no step has to wait for another thread; one after the other,
// each on all threads, a thread has a part of the recurrent weights at a time. Two threads are
// better side by side where the weights stay in a core's own cache, and there are too few samples
// to share these out; more threads, it is supposed, get farther one after the other.
//
// Both directions of a layer need nothing of each other. Layers in one direction run in a
// wavefront: a layer begins as soon as the one below has made a few steps. (Of 16-bit types it
// does not: most kernels widen all their inputs at first.)
//
// Measured, two threads, layers of float32 LSTMs, us of both directions, one after the other / side
// by side (AMD family 26, 1 MiB of L2; at one hour and, when barriers took longer, at another):
//   N 1   T 25, H 64 56/50, 96/62       T 50, H 128 167/158, 275/183   H 192 325/287, 435/309
//   T 50, H 128   N 2 213/199, 326/226   N 4 323/307, 459/356           N 8 562/550, 796/652
// Beyond, one direction alone on two threads / on one: N 1, H 256 236/489, N 16, H 128 503/964.
//
// The same of two layers in one direction, one after the other / in a wavefront (family 6, model
// 167, 2 MiB of L2):
//   T 10    N 1  H 32 42/43    H 64 63/76     H 128 104/160    N 8  H 32 81/63     H 64 120/132
//   T 50    N 1  H 32 64/55    H 64 138/112   H 128 291/277    N 8  H 32 201/146   H 64 407/347
//   T 200   N 1  H 32 160/112  H 64 416/255   H 128 1123/893   N 8  H 32 680/451   H 64 1589/1356
// Tried: the lowest layer with all its inputs projected at once, and the rest a few steps at a
// time. The second begins later: T 50, N 4, H 64 244/245, T 200 856/718, in place of 259/212 and
// 852/595.
#pragma once

#include <cstdint>
#include <exception>

#include "../core/parallel.h"
#include "../core/range.h"
#include "../core/recurrence.h"
#include "kernels.h"

namespace seqkernels {

// The most recurrences of a stack that run side by side.
constexpr int most_side_by_side = 3;

// How many of `count` recurrences of like shape do, directions of a layer or layers of a wavefront.
inline int64_t side_by_side(const RecurrenceShape& shape, int64_t element_bytes, bool is_wavefront,
                            int64_t count, int threads) {
    constexpr int64_t most_samples = 12;
    bool pays = threads <= most_side_by_side && shape.batch < most_samples;
    const int64_t unit_bytes = shape.gates() * shape.hidden * element_bytes;
    const int64_t input_bytes = unit_bytes * shape.inputs, weight_bytes = unit_bytes * shape.hidden;
    if (is_wavefront) {
        // What the steps gain is to make up for those that a layer waits at first, and for weights
        // of inputs that are read every few steps (of two layers of H 64, N 1, T 50, the lower one
        // of 1024 inputs took 364 us in a wavefront, 230 in two calls). A single step does not
        // wait; steps made are counted in 32 bits.
        constexpr int64_t least_steps = 8, most_steps = 1 << 30;
        const int64_t most_bytes = smaller(512 << 10, shape.steps * (4 << 10));
        pays = pays && least_steps <= shape.steps && shape.steps <= most_steps &&
               input_bytes + weight_bytes <= most_bytes;
    } else {
        pays = pays && weight_bytes <= 768 << 10;
    }
    return pays ? smaller(threads, count) : 1;
}

// Runs `count` calls, each on a thread of its own.
template <class T>
void run_side_by_side(const RecurrenceForward<T>* calls, int64_t count,
                      const Operations<T>& kernels) {
    std::exception_ptr failures[most_side_by_side];
    run_parallel(static_cast<int>(count), [&](int thread, int granted) {
        for (int64_t i = thread; i < count; i += granted) {
            try {
                kernels.recurrence_forward(calls[i], 1);
            } catch (...) {
                failures[i] = std::current_exception();
                // Who waits for it goes on; what it computes is not used.
                if (calls[i].output_steps != nullptr) {
                    calls[i].output_steps->raise_to(static_cast<unsigned>(calls[i].shape.steps));
                }
            }
        }
    });
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

// Runs the layers of `calls`, (layers, directions).
template <class T>
void run_layers(RecurrenceForward<T>* calls, int64_t layers, int64_t directions,
                const Operations<T>& kernels, int threads) {
    const bool is_wavefront = directions == 1;
    const int64_t count = layers * directions;
    for (int64_t first = 0; first < count;) {
        const int64_t most = !is_wavefront ? directions : is_sixteen_bit<T> ? 1 : count - first;
        const int64_t together =
            side_by_side(calls[first].shape, sizeof(T), is_wavefront, most, threads);
        AwaitedCount made[most_side_by_side];
        for (int64_t i = 1; is_wavefront && i < together; ++i) {
            calls[first + i - 1].output_steps = &made[i];
            calls[first + i].input_steps = &made[i];
        }
        if (together > 1) {
            run_side_by_side(calls + first, together, kernels);
        } else {
            kernels.recurrence_forward(calls[first], threads);
        }
        first += together;
    }
}

}  // namespace seqkernels
