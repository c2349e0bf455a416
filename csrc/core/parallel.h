// The one thread pool: the OpenMP runtime that torch itself runs on.
//
// Nothing here is linked against an OpenMP runtime, because a second one in the process would bring
// its own threads. Instead the three entry points that a parallel region needs are looked up in the
// runtime that is already loaded (GNU's libgomp; LLVM's and Intel's export the same names).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>

namespace seqkernels {

// Binds the OpenMP runtime that `library` (a path: libtorch_cpu.so) depends on, or is. Returns
// false, and leaves every region serial, where there is none. With `load` the library is loaded if
// need be.
bool bind_openmp(const char* library, bool load);

// The path of the bound runtime, empty when there is none.
std::string openmp_path();

// Runs body(context, thread, threads) on `threads` threads of the pool, the caller being thread 0,
// and returns when all have finished. The runtime may grant fewer threads than asked for: `threads`
// as passed to the body is what there is. The body must not throw.
void run_parallel(int threads, void (*body)(void* context, int thread, int threads), void* context);

// The same for a callable body(thread, threads).
template <class Body>
void run_parallel(int threads, Body&& body) {
    run_parallel(
        threads,
        [](void* context, int thread, int granted) {
            (*static_cast<std::remove_reference_t<Body>*>(context))(thread, granted);
        },
        &body);
}

// What a thread does between two looks at what it waits for.
static inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Items shared out among the threads of one region as they get on: each takes those of its own part
// in turn, call after call the same ones, which its cache may still hold, then what others have
// left of theirs.
class SharedItems {
 public:
    SharedItems(int64_t count, int threads);
    ~SharedItems();
    SharedItems(const SharedItems&) = delete;
    SharedItems& operator=(const SharedItems&) = delete;
    // An item for a thread, or -1 where none is left.
    int64_t take(int thread);

 private:
    struct alignas(64) Counter {
        std::atomic<int64_t> taken{0};
    };
    const int64_t count_;
    const int threads_;
    const std::unique_ptr<Counter[]> counters_;
};

// A count that some threads of a region raise and others wait for. Who waits spins, since a step of
// a recurrence lasts microseconds, and gives its core away after a thousand turns, so that a
// machine with fewer free cores than threads still gets on. Where what runs there then keeps the
// core for half a millisecond or more, all who wait in the process sleep until woken, in place of
// that, for the next tenth of a second: else one thread after the other would lose its core for a
// time slice while the rest wait for it. (An LSTM of 256 units, 16 sequences of 50 steps, two
// threads, family 6 model 167: 2.5 ms; beside a process of the lowest priority on each core 13.1 ms
// without sleep, 2.5 with; beside one of the same priority 13 to 202, and 10; with no other
// process, on one core 5.8 and 6.3, four threads on two cores 3.9 and 4.7.)
class AwaitedCount {
 public:
    unsigned now() const { return count_.load(std::memory_order_acquire); }
    // Never less than before, but for what is beyond 32 bits.
    void raise_to(unsigned count);
    void wait_for(unsigned least) const;

 private:
    void sleep_until(unsigned least) const;

    alignas(64) std::atomic<unsigned> count_{0};
    mutable std::atomic<int> sleepers_{0};
};

// A barrier for the threads of one region.
//
// Tried without gain: for each thread a count of its own that the others read. A loop alone, two
// threads of family 6 model 167, took 0.16 to 0.29 us more a step, as the work of a step and the
// way of waiting differed, in place of 0.19 to 0.23.
class Barrier {
 public:
    void wait(int threads);

 private:
    alignas(64) std::atomic<int> arrived_{0};
    AwaitedCount generation_;
};

}  // namespace seqkernels
