#include "parallel.h"

#include <dlfcn.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>

#include "range.h"

namespace seqkernels {
namespace {

// Entry points of the OpenMP runtime, as GCC's code calls them.
struct OpenMp {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread_number)() = nullptr;
    int (*thread_count)() = nullptr;
    int (*in_parallel)() = nullptr;
    std::string path;
};

OpenMp& openmp() {
    static OpenMp runtime;
    return runtime;
}

struct Region {
    void (*body)(void*, int, int);
    void* context;
};

void enter(void* argument) {
    const Region* region = static_cast<const Region*>(argument);
    region->body(region->context, openmp().thread_number(), openmp().thread_count());
}

// Until when this process's threads do not give their cores away, since what ran there kept them
// for long.
std::atomic<std::chrono::steady_clock::rep> crowded_until{0};

bool is_crowded() {
    return std::chrono::steady_clock::now().time_since_epoch().count() <
           crowded_until.load(std::memory_order_relaxed);
}

void give_core_away() {
    using Clock = std::chrono::steady_clock;
    constexpr auto long_time = std::chrono::microseconds(500);
    constexpr Clock::duration remembered = std::chrono::milliseconds(100);
    const Clock::time_point begin = Clock::now();
    sched_yield();
    const Clock::time_point end = Clock::now();
    if (end - begin > long_time) {
        crowded_until.store((end + remembered).time_since_epoch().count(),
                            std::memory_order_relaxed);
    }
}

static_assert(sizeof(std::atomic<unsigned>) == sizeof(unsigned) &&
                  std::atomic<unsigned>::is_always_lock_free,
              "what the system sleeps on is the number itself");

// Linux's futex: sleeps until woken, unless the number is no longer the one given.
void sleep_while(const std::atomic<unsigned>& number, unsigned value) {
    syscall(SYS_futex, &number, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake_all(const std::atomic<unsigned>& number) {
    syscall(SYS_futex, &number, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Counts may pass beyond 32 bits and begin anew.
bool is_below(unsigned count, unsigned least) { return static_cast<int>(count - least) < 0; }

}  // namespace

bool bind_openmp(const char* library, bool load) {
    void* handle = dlopen(library, RTLD_LAZY | (load ? 0 : RTLD_NOLOAD));
    if (handle == nullptr) return false;
    OpenMp found;
    found.parallel = reinterpret_cast<decltype(found.parallel)>(dlsym(handle, "GOMP_parallel"));
    found.thread_number =
        reinterpret_cast<decltype(found.thread_number)>(dlsym(handle, "omp_get_thread_num"));
    found.thread_count =
        reinterpret_cast<decltype(found.thread_count)>(dlsym(handle, "omp_get_num_threads"));
    found.in_parallel =
        reinterpret_cast<decltype(found.in_parallel)>(dlsym(handle, "omp_in_parallel"));
    if (!found.parallel || !found.thread_number || !found.thread_count || !found.in_parallel) {
        dlclose(handle);
        return false;
    }
    Dl_info where;
    if (dladdr(reinterpret_cast<void*>(found.parallel), &where) != 0 && where.dli_fname) {
        found.path = where.dli_fname;
    }
    openmp() = found;
    return true;
}

std::string openmp_path() { return openmp().path; }

void run_parallel(int threads, void (*body)(void*, int, int), void* context) {
    if (threads <= 1 || openmp().parallel == nullptr || openmp().in_parallel()) {
        body(context, 0, 1);
        return;
    }
    Region region{body, context};
    openmp().parallel(enter, &region, static_cast<unsigned>(threads), 0);
}

SharedItems::SharedItems(int64_t count, int threads)
    : count_(count), threads_(threads), counters_(new Counter[static_cast<std::size_t>(threads)]) {}

SharedItems::~SharedItems() = default;

int64_t SharedItems::take(int thread) {
    for (int i = 0; i < threads_; ++i) {
        const int owner = (thread + i) % threads_;
        const Range part = part_of(count_, 1, owner, threads_);
        const int64_t item =
            part.begin + counters_[static_cast<std::size_t>(owner)].taken.fetch_add(
                             1, std::memory_order_relaxed);
        if (item < part.end) return item;
    }
    return -1;
}

void AwaitedCount::raise_to(unsigned count) {
    count_.store(count, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(count_);
}

void AwaitedCount::wait_for(unsigned least) const {
    constexpr int spins_at_first = 1000;
    for (int spins = 0; is_below(now(), least); ++spins) {
        if (spins < spins_at_first) {
            relax();
        } else if (is_crowded()) {
            sleep_until(least);
        } else {
            give_core_away();
        }
    }
}

// A sleeper is counted before it looks at the count once more, and who raises that does so before
// looking for sleepers: one of the two sees the other.
void AwaitedCount::sleep_until(unsigned least) const {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    for (unsigned seen; is_below(seen = count_.load(std::memory_order_seq_cst), least);) {
        sleep_while(count_, seen);
    }
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void Barrier::wait(int threads) {
    if (threads == 1) return;
    const unsigned next = generation_.now() + 1;
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.raise_to(next);
        return;
    }
    generation_.wait_for(next);
}

}  // namespace seqkernels
