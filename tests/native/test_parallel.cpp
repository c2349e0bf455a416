// The threads of a region, and the barrier between them.
#include <sched.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>

#include "check.h"
#include "core/checked.h"
#include "core/parallel.h"

namespace seqkernels::testing {
namespace {

TEST(parallel_runs_each_thread_once) {
    for (const int asked : {1, 2, 4}) {
        std::atomic<int> visits{0};
        std::atomic<int> granted{0};
        run_parallel(asked, [&](int thread, int threads) {
            CHECK(thread >= 0 && thread < threads && threads <= asked);
            granted = threads;
            ++visits;
        });
        CHECK(visits == granted);
    }
}

TEST(shared_items_are_taken_once_each) {
    for (const int64_t count : {0, 1, 2, 7, 100}) {
        for (const int asked : {1, 2, 3}) {
            std::vector<std::atomic<int>> taken(static_cast<std::size_t>(count));
            SharedItems items(count, asked);
            run_parallel(asked, [&](int thread, int) {
                for (int64_t item = items.take(thread); item >= 0; item = items.take(thread)) {
                    ++taken[static_cast<std::size_t>(item)];
                }
            });
            for (const std::atomic<int>& times : taken) CHECK(times == 1);
        }
    }
}

TEST(barrier_separates_phases) {
    constexpr int phases = 1000;
    std::vector<int> done(8, 0);
    Barrier barrier;
    std::atomic<int> wrong{0};
    run_parallel(3, [&](int thread, int threads) {
        for (int phase = 1; phase <= phases; ++phase) {
            done[static_cast<std::size_t>(thread)] = phase;
            barrier.wait(threads);
            for (int other = 0; other < threads; ++other) {
                if (done[static_cast<std::size_t>(other)] != phase) ++wrong;
            }
            barrier.wait(threads);
        }
    });
    CHECK(wrong == 0);
}

TEST(who_waits_for_a_count_sees_what_was_done_before) {
    constexpr unsigned steps = 2000;
    std::vector<unsigned> made(steps, 0);
    AwaitedCount count;
    std::atomic<int> wrong{0};
    run_parallel(2, [&](int thread, int threads) {
        for (unsigned step = 0; thread == 0 && step < steps; ++step) {
            made[step] = step + 1;
            count.raise_to(step + 1);
        }
        for (unsigned step = 0; thread == threads - 1 && step < steps; ++step) {
            count.wait_for(step + 1);
            if (made[step] != step + 1) ++wrong;
        }
    });
    CHECK(wrong == 0);
    AwaitedCount late;
    late.raise_to(~0u);
    late.raise_to(2);  // 3 more
    late.wait_for(~0u);
    CHECK(late.now() == 2);
}

// This thread on one core while the object lives, if the system allows it.
class OnCore {
 public:
    explicit OnCore(std::size_t core) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(core, &one);
        is_there_ = sched_getaffinity(0, sizeof(before_), &before_) == 0 &&
                    sched_setaffinity(0, sizeof(one), &one) == 0;
    }
    ~OnCore() {
        if (is_there_) sched_setaffinity(0, sizeof(before_), &before_);
    }
    OnCore(const OnCore&) = delete;
    OnCore& operator=(const OnCore&) = delete;

    bool is_there() const { return is_there_; }

 private:
    cpu_set_t before_{};
    bool is_there_ = false;
};

int64_t times_asleep() {
    rusage usage{};
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

TEST(barrier_sleeps_where_others_keep_the_core) {
    constexpr int phases = 20;
    constexpr std::chrono::milliseconds work(3);
    std::vector<int> done(8, 0);
    Barrier barrier;
    std::atomic<int> wrong{0}, threads_granted{0}, threads_there{0};
    std::atomic<int64_t> asleep{0};
    const auto core = static_cast<std::size_t>(sched_getcpu());
    run_parallel(3, [&](int thread, int threads) {
        const OnCore on_core(core);
        threads_granted = threads;
        threads_there += on_core.is_there() ? 1 : 0;
        barrier.wait(threads);
        const int64_t before = times_asleep();
        for (int phase = 1; phase <= phases; ++phase) {
            if (phase % threads == thread) {  // works while the others wait
                const auto begin = std::chrono::steady_clock::now();
                while (std::chrono::steady_clock::now() - begin < work) continue;
            }
            done[static_cast<std::size_t>(thread)] = phase;
            barrier.wait(threads);
            for (int other = 0; other < threads; ++other) {
                if (done[static_cast<std::size_t>(other)] != phase) ++wrong;
            }
            barrier.wait(threads);
        }
        asleep += times_asleep() - before;
    });
    CHECK(wrong == 0);
    if (threads_granted == 1 || threads_there < threads_granted) {
        std::puts("no two threads on one core: whether they sleep is not tested");
        return;
    }
    CHECK(asleep > 0);
}

TEST(checked_product_raises_on_overflow) {
    CHECK(checked_product({3, 5, 7}) == 105);
    bool raised = false;
    try {
        checked_product({int64_t(1) << 40, int64_t(1) << 40});
    } catch (const std::invalid_argument&) {
        raised = true;
    }
    CHECK(raised);
}

}  // namespace
}  // namespace seqkernels::testing
