// The threads of a region, and the barrier between them.
#include <atomic>

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
