// The loops that measure the machine on the threads of the pool. Who calls takes the time.
#pragma once

#include <cstdint>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "kernels.h"

namespace seqkernels {

// Each calls work(thread, result) on every thread, a cache line of results apart, and returns what
// the calls returned, summed.
template <class T, class Work>
double on_every_thread(int threads, Work&& work) {
    constexpr int64_t line = cache_line_bytes / static_cast<int64_t>(sizeof(double));
    const Scratch<double> done(threads * line);
    for (int thread = 0; thread < threads; ++thread) done.data()[thread * line] = 0;
    run_parallel(threads, [&](int thread, int) {
        T result = 0;
        done.data()[thread * line] = work(thread, &result);
        asm volatile("" : : "r"(&result) : "memory");  // what was computed counts as used
    });
    double total = 0;
    for (int thread = 0; thread < threads; ++thread) total += done.data()[thread * line];
    return total;
}

// FLOPs of multiply-adds in registers.
template <class T>
double run_multiply_adds(const Kernels<T>& kernels, int64_t repetitions, int threads) {
    return on_every_thread<T>(
        threads, [&](int, T* result) { return kernels.multiply_adds(repetitions, result); });
}

// FLOPs of bfloat16 products; 0 where there is no instruction for them.
inline double run_bfloat16_products(const KernelTable& kernels, int64_t repetitions, int threads) {
    if (kernels.bfloat16_products == nullptr) return 0;
    return on_every_thread<float>(threads, [&](int, float* result) {
        return kernels.bfloat16_products(repetitions, result);
    });
}

// Bytes read: thread t reads the t-th of `threads` equal parts of source, `repetitions` times.
template <class T>
double run_reads(const Kernels<T>& kernels, const T* source, int64_t count, int64_t repetitions,
                 int threads) {
    const int64_t part = count / threads;
    return on_every_thread<T>(threads, [&](int thread, T* result) {
        for (int64_t i = 0; i < repetitions; ++i) {
            kernels.read_all(source + thread * part, part, result);
        }
        return static_cast<double>(part * repetitions) * sizeof(T);
    });
}

}  // namespace seqkernels
